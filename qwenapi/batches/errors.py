"""Errors of the batch store, as callers are told them.

ApiError
├── UnknownObject       404  no file or batch of this tenant has the id
├── FileInUse           400  a file that an open batch reads
├── TooManyBatches      400  the tenant has as many that are not over as it may
├── NoRoom              507  the tenant's files, or the disk, have no room for another
└── BatchesUnavailable  503  disk full, locked, damaged
"""

from qwenapi.errors import BadRequest, EngineUnavailable, InsufficientStorage, NotFound


class UnknownObject(NotFound):
    sentence = "No such file or batch."


class FileInUse(BadRequest):
    sentence = "The file is the input of a batch that is not over."


class TooManyBatches(BadRequest):
    code = "too_many_batches"
    sentence = "Too many of your batches are not over. Wait until some are, or cancel them."


class NoRoom(InsufficientStorage):
    sentence = "There is no room for more files. Delete some, then try again."


class BatchesUnavailable(EngineUnavailable):
    code = "storage_unavailable"
    sentence = "Files and batches cannot be stored at the moment. Wait, then try again."
