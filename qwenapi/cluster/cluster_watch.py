"""ClusterWatch: finds the engines of a cluster for an HTTP half, as a child of its supervisor.

It keeps the addresses of a model's engines in the run directory, where the HTTP processes look.
"""

from pathlib import Path

from qwenapi.cluster.launcher import ClusterLauncher
from qwenapi.settings.table import Settings


class ClusterWatch:
    """Implements workers.supervisor.supervised_process.Child."""

    name = "cluster"

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self.failure: str | None = None
        self._launcher = ClusterLauncher(settings, "watch", run_dir=str(run_dir))

    @property
    def pid(self) -> int | None:
        return self._launcher.pid

    def start(self) -> None:
        self._launcher.ensure()

    def poll(self) -> int | None:
        code = self._launcher.exit_code
        self.failure = self._launcher.failure
        return code

    def is_ready(self) -> bool:
        return self._launcher.is_connected

    def has_served(self) -> bool:
        return self._launcher.is_connected

    def hang(self) -> str | None:
        """Return None: engines that it does not find are as good as none."""
        return None

    def discourage(self) -> None:
        """Do nothing: the HTTP half says who is ready."""

    def is_idle(self) -> bool:
        return True

    def terminate(self) -> None:
        self.kill()

    def dump(self) -> None:
        """Do nothing: it never hangs."""

    def kill(self) -> None:
        self._launcher.kill()
