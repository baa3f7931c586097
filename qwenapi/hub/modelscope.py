"""ModelScope: models fetched with the `modelscope` library, an extra, into its own cache.

MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN are the library's; it resumes, compares sizes and hashes,
and draws its own progress.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwenapi.hub.hub import ReadCheckpoint, Say
from qwenapi.hub.wanted_files import (
    SMALL_FILES,
    refuse_unfit_listing,
    refuse_without_room,
    weight_files,
)
from workers.checkpoint.hub_name import HubName
from workers.errors import ConfigError, WorkerError


class ModelScope:
    """ModelScope's hub, and the cache in MODELSCOPE_CACHE."""

    def __init__(self) -> None:
        self._snapshot, self._api = _library()

    def fetch(self, name: HubName, read: ReadCheckpoint, say: Say) -> Path:
        """Return the directory of a model, all of whose files are there; raise ConfigError."""
        try:
            return self._fetch(name, read)
        except ConnectionError as error:
            folder = self.cached(name)
            if folder is None:
                raise ConfigError(
                    f"{name}: not cached, and ModelScope cannot be reached ({_first_line(error)});"
                    " fetch it where there is a connection, or pass a directory"
                ) from error
            say(f"{name}: ModelScope cannot be reached; the cached copy is served")
            return folder

    def cached(self, name: HubName) -> Path | None:
        """Return the same without asking the hub; None if it is not there."""
        try:
            folder = self._take(name, [*SMALL_FILES, "*.safetensors"], local_files_only=True)
        except Exception:  # by version a ValueError or errors of its own: nothing is cached
            return None
        return folder if (folder / "config.json").exists() else None

    def _fetch(self, name: HubName, read: ReadCheckpoint) -> Path:
        with _telling(name):
            files = self._api().get_model_files(name.repo, revision=name.revision or None)
        listed = {file["Path"]: file["Size"] or 0 for file in files}
        refuse_unfit_listing(name, listed)
        with _telling(name):
            folder = self._take(name, SMALL_FILES)
        weights = weight_files(read(folder), listed)
        missing = sum(listed[file] for file in weights if not (folder / file).exists())
        refuse_without_room(name, folder, missing, "MODELSCOPE_CACHE")
        with _telling(name):
            return self._take(name, weights)

    def _take(self, name: HubName, files: Any, *, local_files_only: bool = False) -> Path:
        return Path(
            self._snapshot(
                name.repo,
                revision=name.revision or None,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],
                local_files_only=local_files_only,
            )
        )


def _library() -> tuple[Any, Any]:
    try:
        from modelscope import snapshot_download
        from modelscope.hub.api import HubApi
    except ImportError as error:
        raise ConfigError(
            "model_source = 'modelscope' needs a library that is not installed; pip install"
            " 'qwenapi[modelscope]'"
        ) from error
    return snapshot_download, HubApi


@contextmanager
def _telling(name: HubName) -> Iterator[None]:
    """Turn the library's errors into ConfigError, but for those of the connection."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:  # its errors have no base that is the same in all versions
        if _is_of_connection(error):
            raise ConnectionError(_first_line(error)) from error
        raise ConfigError(
            f"{name}: ModelScope refuses, {_first_line(error)}; mend the name or the revision, or"
            " set MODELSCOPE_API_TOKEN"
        ) from error


def _is_of_connection(error: Exception) -> bool:
    from requests import ConnectionError as RequestsConnectionError
    from requests import Timeout

    return isinstance(error, ConnectionError | RequestsConnectionError | Timeout)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
