"""HuggingFace: models fetched with huggingface_hub into its cache, each file's hash compared.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are the library's, and so is going on where a
connection broke; files that a killed start had finished are kept. What the library does not do is
done here: room on the disk, hashes, progress, and one sentence for each failure.
"""

import errno
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # httpx's, by whichever name it is installed
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from qwenapi.hub.fetch_progress import FetchProgress, folder_bytes
from qwenapi.hub.hub import ReadCheckpoint, Say
from qwenapi.hub.wanted_files import (
    SMALL_FILES,
    refuse_unfit_listing,
    refuse_without_room,
    weight_files,
)
from workers.checkpoint.hub_name import HubName
from workers.errors import ConfigError, ModelError

_PIECE_BYTES = 1 << 20
# After which a file that nobody has written to is the rest of a fetch that was killed.
_FORGOTTEN_SECONDS = 3600
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class HuggingFace:
    """The hub at HF_ENDPOINT, and the cache in HF_HOME."""

    def fetch(self, name: HubName, read: ReadCheckpoint, say: Say) -> Path:
        """Return the directory of a model, all of whose files are there; raise ConfigError."""
        disable_progress_bars()
        try:
            info = HfApi().model_info(
                name.repo, revision=name.revision or None, files_metadata=True
            )
        except (HTTPError, OfflineModeIsEnabled, HFValidationError, OSError) as error:
            return self._cached_instead(name, error, say)
        listed = {file.rfilename: file for file in info.siblings or ()}
        refuse_unfit_listing(name, listed)
        small = [listed[file] for file in SMALL_FILES if file in listed]
        folder = self._take(name, str(info.sha), small)
        weights = [listed[file] for file in weight_files(read(folder), listed)]
        return self._take(name, str(info.sha), weights)

    def cached(self, name: HubName) -> Path | None:
        """Return the same without asking the hub; None if it is not there, or not whole."""
        try:
            folder = _snapshot(name, [*SMALL_FILES, "*.safetensors"], local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return folder if (folder / "config.json").exists() else None

    def _cached_instead(self, name: HubName, error: Exception, say: Say) -> Path:
        """Return what is cached where the hub cannot be asked; raise ConfigError otherwise."""
        folder = self.cached(name)
        why = _why_unreachable(error)
        if why is None:
            raise _refusal(name, error, is_cached=folder is not None) from error
        if folder is None:
            is_offline = isinstance(error, OfflineModeIsEnabled)
            remedy = "set it to 0" if is_offline else "fetch it where there is a connection"
            raise ConfigError(
                f"{name}: not cached in {constants.HF_HUB_CACHE}, and {why}; {remedy}, or pass a"
                " directory"
            ) from error
        say(f"{name}: {why}; the cached copy of commit {folder.name[:12]} is served")
        return folder

    def _take(self, name: HubName, commit: str, files: Sequence[Any]) -> Path:
        """Fetch files of a commit that are not cached yet; return the folder they are in."""
        storage = _storage(name)
        folder = storage / "snapshots" / commit
        for file in files:
            _drop_if_cut(folder / file.rfilename, file.size)
        missing = [file for file in files if not (folder / file.rfilename).exists()]
        if missing:
            _drop_forgotten(storage / "blobs")
            total = sum(file.size or 0 for file in missing)
            refuse_without_room(name, storage, total, "HF_HOME")
            with (
                _telling(name),
                FetchProgress(
                    str(name), total, lambda: folder_bytes(storage / "blobs"), sys.stderr
                ),
            ):
                found = _snapshot(name, [file.rfilename for file in missing])
            if found != folder:
                raise ConfigError(f"{name}: changed on the hub while it was fetched; start again")
            for file in missing:
                _check_hash(name, folder / file.rfilename, file)
        return folder


def _snapshot(name: HubName, files: Sequence[str], *, local_files_only: bool = False) -> Path:
    return Path(
        snapshot_download(
            name.repo,
            revision=name.revision or None,
            allow_patterns=list(files),
            ignore_patterns=["*/*"],
            local_files_only=local_files_only,
        )
    )


def _storage(name: HubName) -> Path:
    """Return the folder of a repository, as the library lays its cache out."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / f"models--{name.repo.replace('/', '--')}"


def _drop_if_cut(file: Path, size: int | None) -> None:
    """Remove a cached file of another size than the hub's, so that it is fetched again."""
    if size is not None and file.exists() and file.stat().st_size != size:
        _drop(file)


def _drop_forgotten(blobs: Path) -> None:
    """Remove what killed fetches have left: by its names no other goes on with it."""
    for file in blobs.glob("*.????????.incomplete"):
        try:
            if time.time() - file.stat().st_mtime > _FORGOTTEN_SECONDS:
                file.unlink()
        except FileNotFoundError:
            continue


def _drop(file: Path) -> None:
    file.resolve().unlink(missing_ok=True)
    file.unlink(missing_ok=True)


def _check_hash(name: HubName, file: Path, listed: Any) -> None:
    """Raise ConfigError, and remove the file, if its bytes are not those that the hub lists.

    Large files have their SHA-256 there, small ones git's hash of a blob.
    """
    expected = listed.lfs.sha256 if listed.lfs else listed.blob_id
    if not expected:
        return
    digest = hashlib.sha256()
    if not listed.lfs:
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    if digest.hexdigest() != expected:
        _drop(file)
        raise ConfigError(
            f"{name}: {file.name} arrived with the hash {digest.hexdigest()[:12]}, but the hub"
            f" lists {expected[:12]}; start again, and without a proxy between if it happens again"
        )


@contextmanager
def _telling(name: HubName) -> Iterator[None]:
    """Turn what breaks a fetch off into ConfigError."""
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        known = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404)
        if known:
            raise _refusal(name, error) from error
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            raise ConfigError(
                f"{name}: cannot write to {constants.HF_HUB_CACHE}, {error.strerror}; set HF_HOME"
                " to a folder that may be written"
            ) from error
        cause = error.__cause__ or error
        raise ConfigError(
            f"{name}: the fetch broke off, {_first_line(cause)}; start again, finished files are"
            " kept"
        ) from error


def _why_unreachable(error: Exception) -> str | None:
    """Return why a hub cannot be asked; None if it has answered, or the question was wrong."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        busy = status == 429 or status >= 500
        return f"{constants.ENDPOINT} answers {status}" if busy else None
    if isinstance(error, HTTPError):
        return f"{constants.ENDPOINT} cannot be reached ({_first_line(error)})"
    return None


def _refusal(name: HubName, error: Exception, *, is_cached: bool = False) -> ConfigError:
    """Return what the hub's refusal means, and the remedy."""
    hub = constants.ENDPOINT
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    token = get_token() if status else None
    hint = "; with HF_HUB_OFFLINE=1 the cached copy is served" if is_cached else ""
    if isinstance(error, GatedRepoError):
        text = (
            f"access is gated; accept its terms at {hub}/{name.repo} and set HF_TOKEN to a token of"
            " that account"
        )
    elif isinstance(error, RevisionNotFoundError):
        text = (
            f"{hub} has the model, but no revision {name.revision!r}; name a branch, tag or commit"
        )
    elif isinstance(error, RepositoryNotFoundError) or (status == 401 and not token):
        text = (
            f"no such directory here, and no such model at {hub}, or a private one; mend the name,"
            " or set HF_TOKEN"
        )
    elif status in (401, 403):
        whom = "the token" if token else "who has no token"
        text = f"{hub} refuses {whom} ({status}); set HF_TOKEN to one that may"
    else:
        text = f"{hub} cannot be asked, {_first_line(error)}; mend HF_ENDPOINT and the name"
    return ModelError(f"{name}: {text}{hint}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
