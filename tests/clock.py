"""Clock: sets CLOCK_REALTIME of one server, as an operator or NTP would, and no other clock of it.

A library preloaded into the server adds what a file says; it is compiled where it is needed.
"""

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
HAS_COMPILER = shutil.which("cc") is not None


class Clock:
    """The wall clock of the processes that are started with `environ`."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        self._file.write_bytes(struct.pack("=q", 0))
        self.environ = {"LD_PRELOAD": str(library), "QWENAPI_TEST_CLOCK": str(self._file)}

    def set_back_or_forth(self, seconds: int) -> None:
        """Set it to the true time and so many seconds; read by its processes at once."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", seconds))
