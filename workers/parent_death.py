"""End a process when its parent has died, however the parent died."""

import ctypes
import os
import signal
import threading

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel end this process when its parent dies from now on."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hold(fd: int) -> None:
    """End this process with SIGKILL when its parent dies, or when the other end of the pipe `fd`
    closes.

    PDEATHSIG acts at once but follows the thread that spawned us and misses a parent that died
    before this call; the pipe misses nothing but a stopped parent.
    """
    die_with_parent()

    def wait_for_end() -> None:
        try:
            while os.read(fd, 4096):
                pass
        except OSError:
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_for_end, name="parent-death", daemon=True).start()
