"""HttpHalf and ModelHalf: the processes of a half, made at its start and in step 2 of a reload."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from qwenapi.cluster.cluster_engine import ClusterEngine
from qwenapi.cluster.launcher import ClusterLauncher
from qwenapi.keys.mode import settle
from qwenapi.serving.config_reload import ConfigReload
from qwenapi.serving.http_child import HttpChild
from qwenapi.serving.listener import listen
from qwenapi.serving.startup_config import StartupConfig
from qwenapi.settings.table import Settings
from workers.cpu_cores import physical_cores
from workers.supervisor.engine_child import EngineChild
from workers.supervisor.reload import Reloader
from workers.supervisor.standby import Standby
from workers.wire.engine_stats import ENGINE_LAYOUT
from workers.wire.shared_memory import SharedMemory
from workers.wire.shared_memory_files import shared_memory_path
from workers.worker.worker_spec import WorkerSpec

Progress = Callable[[str, str, float], None]


class HttpHalf:
    """The listening socket, and the server on it."""

    def __init__(
        self, parsed: argparse.Namespace, folder: Path, engines_dir: Callable[[Settings], Path]
    ) -> None:
        startup_config = StartupConfig.read(vars(parsed))
        self._flags = parsed.flags
        self._settings = startup_config.settings
        self._folder = folder
        self._engines_dir = engines_dir
        self.listener = listen(startup_config.settings)
        self._child = self._next = self._new(startup_config, None)

    @property
    def children(self) -> list[HttpChild]:
        return [self._child]

    def reloader(self, group: int) -> Reloader:
        """Return how the half is reloaded: a new server starts beside the old one."""
        return Reloader(group, lambda: self._config_reload(), overlaps=True)

    def _config_reload(self) -> ConfigReload[HttpChild]:
        return ConfigReload("http", self._flags, self._settings, self._successors)

    def _successors(self, startup_config: StartupConfig) -> list[HttpChild]:
        if self._next.has_served():  # the last successor may have failed
            self._child = self._next
        self._next = self._new(startup_config, self._child)
        return [self._next]

    def _new(self, startup_config: StartupConfig, predecessor: HttpChild | None) -> HttpChild:
        settings = settle(startup_config.settings, self.listener.host)
        return HttpChild(
            replace(startup_config, settings=replace(settings, port=self.listener.port)),
            self._folder,
            self._engines_dir(settings),
            self.listener,
            predecessor,
        )


class ModelHalf:
    """The engine processes, here or in a cluster, and the memory in which their figures are."""

    def __init__(
        self, parsed: argparse.Namespace, settings: Settings, folder: Path, progress: Progress
    ) -> None:
        count = settings.data_parallel_size
        self._flags = parsed.flags
        self._settings = settings
        self._folder = folder
        self._progress = progress
        self._memory = SharedMemory.create(
            shared_memory_path(folder, ENGINE_LAYOUT), ENGINE_LAYOUT, count
        )
        self._standby = None
        if settings.standby or settings.standby_weights:
            self._standby = Standby(holds_weights=settings.standby_weights)
        self._launcher = ClusterLauncher(settings) if settings.cluster else None
        self.children = self._new(settings)

    def reloader(self, group: int) -> Reloader:
        """Return how the half is reloaded: one engine after the other, each in its own place."""
        return Reloader(group, lambda: self._config_reload(), overlaps=False)

    def _config_reload(self) -> ConfigReload[EngineChild | ClusterEngine]:
        return ConfigReload(
            "model", self._flags, self._settings, lambda new: self._new(new.settings)
        )

    def _new(self, settings: Settings) -> Sequence[EngineChild | ClusterEngine]:
        if self._launcher is not None:
            launcher, place = self._launcher, (self._folder, self._memory)
            return [
                ClusterEngine(i, settings, *place, launcher, self._progress)
                for i in range(settings.data_parallel_size)
            ]
        return self._new_here(settings)

    def _new_here(self, settings: Settings) -> list[EngineChild]:
        count = settings.data_parallel_size
        # More OpenMP threads than cores fight for them; all processes share what there is.
        num_processes = count * settings.tensor_parallel_size
        threads = settings.threads or max(1, physical_cores() // num_processes)
        config = replace(settings.engine_config(), threads=threads)
        return [
            EngineChild(
                replace(config, replica=i if count > 1 else -1),
                WorkerSpec(i, self._folder, self._memory.path),
                self._memory,
                self._progress,
                self._standby,
            )
            for i in range(count)
        ]
