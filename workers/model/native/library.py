"""Compile the C functions for this machine's CPU once, keep them in the user's cache, load them.

They are for one dtype, and for the instructions of the CPU that compiles them. Their threads are
those of torch's own OpenMP library, which they are linked to: two pools would fight for the cores.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

_SOURCES = ("attention.c", "bfloat16.c", "int4.c", "int8.c", "layers.c", "spans.c")
_HEADERS = ("panels.h", "vectors.h")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=gnu11", "-Wno-psabi")
_TYPES = {torch.bfloat16: (), torch.float32: ("-DFLOAT32",)}
_COMPILE_SECONDS = 120.0
_OPENMP = ("libgomp", "libiomp5", "libomp")

_logger = logging.getLogger(__name__)


class CannotCompile(Exception):
    """Why there are no compiled functions; its text is a clause."""


@cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the functions for numbers of a dtype; None, with a line in the log, without them."""
    try:
        return _load(dtype)
    except (CannotCompile, OSError) as error:
        _logger.warning("no compiled functions, torch is slower: %s", error)
        return None


def _load(dtype: torch.dtype) -> ctypes.CDLL:
    if dtype not in _TYPES:
        raise CannotCompile(f"there is none for {dtype}")
    compiler = shlex.split(os.environ.get("CC") or shutil.which("gcc") or "")
    if not compiler:
        raise CannotCompile("no C compiler; install gcc")
    flags = (*_FLAGS, *_TYPES[dtype])
    openmp = _openmp_library()
    folder, name = _cache_folder(), f"native-{_digest(*compiler, openmp, *flags)}"
    for kept in folder.glob(f"{name}-*.so") if folder else ():
        if _is_whole(kept):
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="qwenapi-") as place:
        built = _compile(compiler, flags, openmp, Path(place))
        loaded = ctypes.CDLL(str(built))  # it stays mapped when the file is gone
        if folder:
            _keep(built, folder / f"{name}-{built.stat().st_size}.so")
        return loaded


def _compile(compiler: list[str], flags: tuple[str, ...], openmp: str, folder: Path) -> Path:
    here = Path(__file__).parent
    objects = [folder / f"{source}.o" for source in _SOURCES]
    commands = [
        (*compiler, *flags, "-c", str(here / source), "-o", str(to))
        for source, to in zip(_SOURCES, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda command: _run(*command), commands))
    built = folder / "native.so"
    # Linked without -fopenmp, which would add the compiler's own library.
    _run(*compiler, "-shared", *map(str, objects), "-o", str(built), openmp, "-lm")
    return built


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_COMPILE_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise CannotCompile(f"{command[0]} failed: {reason[:200]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{command[0]} failed: {error}") from error


def _openmp_library() -> str:
    """Return the file of the OpenMP library that torch has loaded."""
    torch.get_num_threads()
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith(_OPENMP):
            return path
    raise CannotCompile("torch has no OpenMP library")


def _digest(*parts: str) -> str:
    """Return what is another for another program or CPU."""
    here = Path(__file__).parent
    texts = [(here / name).read_bytes() for name in (*_SOURCES, *_HEADERS)]
    texts += [part.encode() for part in (*parts, _cpu())]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:32]


def _cpu() -> str:
    """Return the lines of /proc/cpuinfo that say which instructions there are."""
    names = ("flags", "Features", "model name", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _cache_folder() -> Path | None:
    """Return the folder of what is kept; None for a user who has no home."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "qwenapi"
    except RuntimeError:
        return None


def _is_whole(file: Path) -> bool:
    """Return whether a file is as long as its name says, and nobody else could have written it."""
    try:
        found = file.stat()
    except OSError:
        return False
    is_ours = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return is_ours and file.stem.endswith(f"-{found.st_size}")


def _keep(built: Path, kept: Path) -> None:
    """Put a copy into the cache, whole or not at all; without a cache it is built at each start."""
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            part = Path(folder) / kept.name
            with part.open("wb") as file:
                file.write(built.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(part, 0o600)
            os.replace(part, kept)
    except OSError as error:
        _logger.info("what was compiled is not kept: %s", error)
