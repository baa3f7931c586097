"""EngineClient: finds the engines, asks one, and sees that a lost one's requests go on.

Knows gevent: one greenlet reads each connection. Refuses to know text, HTTP, Flask.
"""

import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import gevent
import msgspec
from gevent.event import Event

from qwenapi.engines.capacity import measure
from qwenapi.engines.engine_stats_reader import EngineStatsReader
from qwenapi.engines.generation import Beat, Generation
from qwenapi.engines.link import PING_SECONDS, DeviceMemory, EngineLink
from qwenapi.engines.mailbox import Mailbox
from qwenapi.engines.quarantine import Quarantine
from qwenapi.engines.replay import Replays
from qwenapi.engines.routing import Router
from qwenapi.errors import RequestQuarantined
from qwenapi.greenlets import in_thread, spawn_lasting
from qwenapi.settings.queue_limits import QueueLimits
from workers.errors import ConfigError, ProtocolError
from workers.wire.connection import ConnectionEnded, ConnectionSilent, connect
from workers.wire.engine_stats import EngineRow
from workers.wire.grammar import Grammar
from workers.wire.protocol import (
    Accepted,
    FailReason,
    Generate,
    Image,
    ModelCard,
    Pooling,
    Rejected,
    SamplingParams,
    wire_id,
)
from workers.wire.tls import TlsFiles

log = logging.getLogger(__name__)

DISCOVERY_SECONDS = 0.5
BEAT_SECONDS = 15.0
# How long an engine whose model cannot be used here is left alone.
UNUSABLE_SECONDS = 10.0
# How long a model half whose engines are all lost is expected back, and how long one new request
# waits for it.
EXPECTED_SECONDS = 60.0
MAX_WAIT_SECONDS = 30.0
# How soon a waiting request whose caller has gone is given up.
POLL_SECONDS = 0.25


class EngineError(Exception):
    """Base of what can go wrong between here and an engine."""


class NoEngine(EngineError):
    """No engine has the request, and none that could take it is expected soon."""


class Refused(EngineError):
    """Every engine that could take the request refused it."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.reason)
        self.rejected = rejected


class EngineClient:
    """All engines of one model half, found by the sockets in its run directory, and by the
    addresses there of those on other machines.
    """

    def __init__(
        self,
        run_dir: Path,
        name: str,
        prepare: Callable[[ModelCard], None],
        quarantine: Quarantine | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        """`prepare` is called in a thread with each engine's card, before requests can reach it;
        `tls` is for engines on other machines.
        """
        self._run_dir = run_dir
        self._name = name
        self._prepare = prepare
        self._links: dict[Path, EngineLink] = {}
        self._router = Router()
        self._connecting: set[Path] = set()
        self._tls = tls
        self._complaints: dict[Path, str] = {}
        self._serials = itertools.count(1)
        self._memories = EngineStatsReader()
        self._replays = Replays(
            run_dir,
            lambda: list(self._links.values()),
            self._tell_news,
            quarantine or Quarantine(),
            self._router,
        )
        self._card: ModelCard | None = None
        self._lost_at = -EXPECTED_SECONDS
        self._num_waiting: Counter[str] = Counter()
        self._news = Event()
        self._is_ending = False
        # Set while callers should go elsewhere, though requests are served on; then while new ones
        # are refused.
        self.is_discouraged = self.is_refusing = False

    def start(self) -> None:
        """Begin to look for engines; call it in the process and hub that will use them."""
        spawn_lasting("the discovery of engines", self._discover)
        spawn_lasting("the sending of beats", self._keep_time)
        spawn_lasting("replaying", self._replays.run)

    @property
    def card(self) -> ModelCard | None:
        """Return what the engines serve or, all lost, will soon serve again; None before the first
        has come, and when none is expected back.
        """
        is_expected = time.monotonic() - self._lost_at < EXPECTED_SECONDS
        return self._card if self._links or is_expected else None

    @property
    def num_replays(self) -> int:
        """Return how many times a request was taken over from a lost engine."""
        return self._replays.num_replays

    def devices(self) -> list[DeviceMemory]:
        """Return the memory of each connected engine's device."""
        return [memory for link in self._links.values() if (memory := link.device_memory())]

    def engine_rows(self) -> list[EngineRow]:
        """Return what every engine ever met publishes, those that are down included."""
        links = self._links.values()
        return self._memories.rows({link.hello.engine_index for link in links if link.is_alive()})

    @property
    def is_ready(self) -> bool:
        """Return whether an engine is connected that makes progress, or would if it had work."""
        return not self.is_discouraged and any(link.is_alive() for link in self._links.values())

    def fail_all(self, reason: FailReason) -> None:
        """Fail every request under way, as this process is about to end."""
        self._is_ending = True
        for generation in self._generations():
            generation.fail(reason)

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        n: int = 1,
        priority: int = 0,
        tenant: str = "",
        cache_salt: str = "",
        model_hash: str,
        limits: QueueLimits,
        mailbox: Mailbox,
        grammar: Grammar | None = None,
        pooling: Pooling | None = None,
        images: tuple[Image, ...] = (),
    ) -> Generation:
        """Return the generation once an engine has accepted it; its events go to `mailbox`.

        `model_hash` is of the model whose tokenizer made the prompt: no other is asked. Prompts are
        shared in the cache within a tenant, and where there is a `cache_salt`, only by its users.
        Waits for a while where the engines were lost and are expected back. Raises NoEngine,
        Refused (the last refusal), RequestQuarantined, or Cancelled when the mailbox was cancelled
        meanwhile.
        """
        request = Generate(
            wid=0,
            request_id=request_id,
            prompt_ids=tuple(prompt_ids),
            params=params,
            choices=tuple(range(n)),
            priority=priority,
            tenant=tenant,
            cache_salt=f"{tenant}\0{cache_salt}" if cache_salt else tenant,
            group=limits.group,
            max_running=limits.max_running,
            max_waiting=limits.max_waiting,
            queue_timeout=limits.queue_timeout,
            grammar=grammar,
            pooling=pooling,
            images=images,
        )
        if request in self._replays.quarantine:
            raise RequestQuarantined
        if self.card is None:
            raise NoEngine
        generation = self._ask(request, model_hash, mailbox)
        if generation is None:
            deadline = time.monotonic() + min(MAX_WAIT_SECONDS, limits.queue_timeout)
            with self._waiting_room(request):
                while generation is None:
                    self._wait_for_engine(deadline, mailbox)
                    generation = self._ask(request, model_hash, mailbox)
        return generation

    def _ask(self, request: Generate, model_hash: str, mailbox: Mailbox) -> Generation | None:
        """Return the generation of the first engine that accepts a request; None when there is none
        to ask now, or all that were asked were lost or are about to end. Raises Refused.
        """
        refused: Rejected | None = None
        for link in self._usable(request, model_hash):
            if self._is_ending:
                raise NoEngine
            wid = wire_id(next(self._serials), 0)
            generation = Generation(msgspec.structs.replace(request, wid=wid), mailbox)
            link.submit(generation)
            try:
                reply = mailbox.take_reply(generation)
            except BaseException:
                generation.close()
                raise
            if isinstance(reply, Accepted):
                return generation
            if isinstance(reply, Rejected) and reply.reason != "draining":
                refused = reply
        if refused is not None:
            raise Refused(refused)
        return None

    @contextmanager
    def _waiting_room(self, request: Generate) -> Iterator[None]:
        """Count who waits for engines to come back; raise Refused when a group's queue is full."""
        waiting = self._num_waiting[request.group]
        if 0 < request.max_waiting <= waiting:
            raise Refused(
                Rejected(
                    wid=0,
                    reason="queue_full",
                    queue_size=waiting,
                    max_queue_size=request.max_waiting,
                )
            )
        self._num_waiting[request.group] += 1
        try:
            yield
        finally:
            self._num_waiting[request.group] -= 1

    def _usable(self, request: Generate, model_hash: str) -> list[EngineLink]:
        """Return the engines to ask, best first; raise NoEngine when they serve another model than
        the one whose tokenizer made the prompt.
        """
        if self._replays.is_isolating or self._replays.has_interrupted:
            return []
        links = list(self._links.values())
        same = [link for link in links if link.hello.card.model_hash == model_hash]
        if links and not same:
            raise NoEngine
        return self._router.candidates([link for link in same if link.is_alive()] or same, request)

    def _wait_for_engine(self, deadline: float, mailbox: Mailbox) -> None:
        """Wait for news of the engines; raise NoEngine if that takes too long, or Cancelled."""
        left = deadline - time.monotonic()
        if left <= 0 or self._is_ending or self.card is None:
            raise NoEngine
        self._news.wait(min(left, POLL_SECONDS))
        mailbox.check()

    def _tell_news(self) -> None:
        news, self._news = self._news, Event()
        news.set()

    def _discover(self) -> None:
        while True:
            for path in chain(*map(self._run_dir.glob, ("engine-*.sock", "engine-*.tcp"))):
                if path not in self._links and path not in self._connecting:
                    self._connecting.add(path)
                    gevent.spawn(self._serve, path)
            gevent.sleep(DISCOVERY_SECONDS)

    def _serve(self, path: Path) -> None:
        """Hold the connection to one engine, from its hello to its end."""
        try:
            connection, hello = connect(str(path), self._name, self._tls)
        except (OSError, ConnectionEnded, ProtocolError, ConfigError) as error:
            self._complain(path, error)
            self._connecting.discard(path)
            return
        self._complaints.pop(path, None)
        link: EngineLink | None = None
        is_cut = False
        try:
            mirror = self._memories.meet(hello, is_remote=path.suffix == ".tcp")
            link = EngineLink(connection, hello, self._replays, mirror)
            in_thread(lambda: self._prepare(hello.card))
            self._links[path], self._card = link, hello.card
            self._replays.wake()
            self._tell_news()
            log.info("%s connected, generation %d", path.name, hello.generation)
            link.read()
        except (OSError, ConnectionEnded, ProtocolError) as error:
            log.warning("%s lost: %s", path.name, error)
            is_cut = isinstance(error, ConnectionSilent)
        except ConfigError as error:
            log.critical("%s cannot be used: %s", path.name, error)
            gevent.sleep(UNUSABLE_SECONDS)
        finally:
            if self._links.pop(path, None) is not None:
                self._lost_at = time.monotonic()
            self._connecting.discard(path)
            if link is None:
                connection.close()
            else:
                link.end(is_cut=is_cut)

    def _complain(self, path: Path, error: Exception) -> None:
        """Say once why an engine is not spoken to; that none listens is usual while one starts."""
        is_usual = isinstance(error, ConnectionError | ConnectionEnded | FileNotFoundError)
        if is_usual or self._complaints.get(path) == str(error):
            log.debug("%s: %s", path.name, error)
        else:
            log.warning("%s: %s; tried again", path.name, error)
            self._complaints[path] = str(error)

    def _keep_time(self) -> None:
        """Ping and measure engines, and let callers who have got nothing for a while have a sign of
        life.
        """
        for tick in itertools.count():
            gevent.sleep(1)
            now = time.monotonic()
            measure(self._links.values(), now)
            for link in list(self._links.values()):
                if tick % PING_SECONDS == 0:
                    gevent.spawn(link.ping, tick)  # an engine that does not read holds up nobody
            for generation in self._generations():
                if now - generation.last_sign >= BEAT_SECONDS:
                    generation.touch()
                    generation.put(Beat())

    def _generations(self) -> Iterator[Generation]:
        """Yield every request under way, on an engine or waiting for one."""
        for link in list(self._links.values()):
            yield from link.generations()
        yield from list(self._replays.waiting)


def random_seed() -> int:
    """Return the seed of a request that names none."""
    return secrets.randbits(63)
