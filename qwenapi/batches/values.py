"""The batch store's frozen values: files, and batches with what has become of them."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
]
# Somebody has to do something about a batch in these.
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")
WINDOW_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a tenant's; what it holds lies in the store's folder under its id."""

    id: str
    tenant: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int


@dataclass(frozen=True, kw_only=True)
class RequestBatch:
    """A batch. `times` says when it came into each status, in seconds since 1970; `errors` why its
    input is unfit. The names of its outputs are settled when it is made.
    """

    id: str
    tenant: str
    key_id: str
    endpoint: str
    input_file_id: str
    output_file_id: str
    error_file_id: str
    created_at: int
    metadata: Mapping[str, str] | None = None
    status: Status = "validating"
    times: Mapping[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    has_output: bool = False
    has_errors: bool = False
    ending: Status = "completed"  # what it will be once it is finalized
    errors: tuple[Mapping[str, Any], ...] = ()

    @property
    def expires_at(self) -> int:
        return self.created_at + WINDOW_SECONDS

    @property
    def is_open(self) -> bool:
        return self.status in OPEN


def new_id(kind: str) -> str:
    """Return an id that nobody has: `file-…` or `batch_…`."""
    return kind + uuid.uuid4().hex
