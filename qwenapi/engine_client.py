"""The HTTP half's side of the wire: finds engines, chooses one for a request, hands out what comes
back.

Knows gevent: one greenlet reads each connection. Refuses to know text, HTTP, Flask.
"""

import hashlib
import itertools
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import gevent
from gevent import get_hub

from qwenapi.generation import Beat, Generation, Mailbox
from qwenapi.limits import Limits
from workers.connection import Connection, ConnectionEnded, connect
from workers.errors import ConfigError, PageError, ProtocolError
from workers.page import ENGINE_LAYOUT, Phase, SharedPage
from workers.protocol import (
    Abort,
    Accepted,
    Failed,
    Finished,
    FromEngine,
    Generate,
    Hello,
    ModelCard,
    Ping,
    Pong,
    Rejected,
    SamplingParams,
    Step,
    wire_id,
)

log = logging.getLogger(__name__)

DISCOVERY_SECONDS = 0.5
PING_SECONDS = 2.0
BEAT_SECONDS = 15.0
# How long an engine whose model cannot be used here is left alone.
UNUSABLE_SECONDS = 10.0
# A prefix's favourite engine is left when it has this many more tokens in flight than the least
# loaded one.
AFFINITY_SLACK_TOKENS = 8192
AFFINITY_PREFIX_TOKENS = 256


class EngineError(Exception):
    """Base of what can go wrong between here and an engine."""


class NoEngine(EngineError):
    """No engine is connected; nothing was asked of any."""


class Refused(EngineError):
    """Every engine that could take the request refused it."""

    def __init__(self, rejected: Rejected) -> None:
        super().__init__(rejected.reason)
        self.rejected = rejected


class DeviceMemory(NamedTuple):
    """Bytes of one engine's device; all 0 on a CPU."""

    allocated: int
    reserved: int
    total: int


class EngineLink:
    """A connection to one engine, after its hello, and the generations it works on."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self.hello = hello
        self.num_tokens_in_flight = 0
        self.last_pong = time.monotonic()
        self._connection = connection
        self._is_ended = False
        self._generations: dict[int, Generation] = {}
        self._page = _open_page(hello)

    def submit(self, generation: Generation) -> None:
        generation.link = self
        if self._is_ended:
            generation.is_over = True
            generation.put(Failed(generation.request.wid, "engine_lost"))
            return
        self._generations[generation.request.wid] = generation
        self.num_tokens_in_flight += generation.weight
        self.send(generation.request)

    def forget(self, generation: Generation) -> None:
        """Drop a generation; its engine frees it within one step unless it has ended by itself."""
        if self._generations.pop(generation.request.wid, None) is not None:
            self.num_tokens_in_flight -= generation.weight
            if not generation.is_over:
                generation.is_over = True
                self.send(Abort(generation.request.wid))

    def send(self, message: Generate | Abort | Ping | Pong) -> None:
        try:
            self._connection.send(message)
        except ConnectionEnded:
            pass  # the reader greenlet sees the same end and answers for every generation

    def read(self) -> None:
        """Deliver what arrives until the connection ends; raise ConnectionEnded or ProtocolError
        then.
        """
        while True:
            for message in self._connection.receive():
                self._deliver(message)
            # Every frame that has arrived is delivered before any request runs: that is what makes
            # writes coalesce.
            gevent.sleep(0)

    def end(self) -> None:
        """Answer for everything this connection owed."""
        self._is_ended = True
        self._connection.close()
        for generation in list(self._generations.values()):
            generation.is_over = True
            generation.put(Failed(generation.request.wid, "engine_lost"))
        self._generations.clear()
        if self._page is not None:
            self._page.close()

    def is_alive(self) -> bool:
        """Return whether the engine loop shows signs of life within its own limit, and answers."""
        silence = time.monotonic() - self.last_pong
        if self._page is None:
            return silence < 2 * PING_SECONDS
        row = self._page.read(self.hello.engine_index)
        limit = row["step_timeout_ns"]
        return (
            row["generation"] == self.hello.generation
            and row["phase"] != Phase.DRAINING
            and time.monotonic_ns() - row["beat_ns"] <= limit
            # The loop answers pings between steps, so an answer may be as late as a step is long.
            and silence <= limit / 1e9 + 2 * PING_SECONDS
        )

    def device_memory(self) -> DeviceMemory | None:
        if self._page is None:
            return None
        row = self._page.read(self.hello.engine_index)
        return DeviceMemory(row["device_allocated"], row["device_reserved"], row["device_total"])

    def generations(self) -> Iterator[Generation]:
        return iter(list(self._generations.values()))

    def _deliver(self, message: FromEngine) -> None:
        if isinstance(message, Step):
            self._deliver_step(message)
        elif isinstance(message, Accepted | Rejected):
            self._deliver_answer(message)
        elif isinstance(message, Ping):
            self.send(Pong(message.nonce))
        elif isinstance(message, Pong):
            self.last_pong = time.monotonic()
        else:
            raise ProtocolError("a second hello")

    def _deliver_step(self, step: Step) -> None:
        # Ids that are not known belong to requests whose caller has gone; what was on its way is
        # dropped here.
        generations = self._generations
        for started in step.started:
            if generation := generations.get(started.wid):
                generation.num_cached_tokens = started.cached_tokens
        for chunk in step.chunks:
            if generation := generations.get(chunk.wid):
                generation.receive(chunk)
        endings: list[Finished | Failed] = [*step.finished, *step.failed]
        for ending in endings:
            if generation := generations.get(ending.wid):
                self._over(generation)
                generation.put(ending)

    def _deliver_answer(self, answer: Accepted | Rejected) -> None:
        if generation := self._generations.get(answer.wid):
            if isinstance(answer, Rejected):
                self._over(generation)
            generation.put(answer)

    def _over(self, generation: Generation) -> None:
        generation.is_over = True
        self.forget(generation)


class EngineClient:
    """All engines of one model half, found by the sockets in its run directory."""

    def __init__(self, run_dir: Path, name: str, prepare: Callable[[ModelCard], None]) -> None:
        """`prepare` is called in a thread with the card of each engine before requests can reach
        it.
        """
        self._run_dir = run_dir
        self._name = name
        self._prepare = prepare
        self._links: dict[Path, EngineLink] = {}
        self._connecting: set[Path] = set()
        self._serials = itertools.count(1)

    def start(self) -> None:
        """Begin to look for engines; call it in the process and hub that will use them."""
        gevent.spawn(self._discover)
        gevent.spawn(self._keep_time)

    @property
    def card(self) -> ModelCard | None:
        """Return what the engines serve, or None while none is connected."""
        return next((link.hello.card for link in self._links.values()), None)

    def devices(self) -> list[DeviceMemory]:
        """Return the memory of each connected engine's device."""
        return [memory for link in self._links.values() if (memory := link.device_memory())]

    @property
    def is_ready(self) -> bool:
        """Return whether an engine is connected that makes progress, or would if it had work."""
        return any(link.is_alive() for link in self._links.values())

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        n: int = 1,
        priority: int = 0,
        tenant: str = "",
        limits: Limits,
        mailbox: Mailbox,
    ) -> Generation:
        """Return the generation once an engine has accepted it; its events go to `mailbox`.

        Raises NoEngine, Refused (the last refusal), or Cancelled when the mailbox was cancelled
        meanwhile.
        """
        refused: Rejected | None = None
        for link in self._candidates(prompt_ids, limits):
            request = Generate(
                wid=wire_id(next(self._serials), 0),
                request_id=request_id,
                prompt_ids=tuple(prompt_ids),
                params=params,
                choices=tuple(range(n)),
                priority=priority,
                tenant=tenant,
                cache_salt=tenant,
                group=limits.group,
                max_running=limits.max_running,
                max_waiting=limits.max_waiting,
                queue_timeout=limits.queue_timeout,
            )
            generation = Generation(request, mailbox)
            link.submit(generation)
            try:
                answer = mailbox.take_answer(generation)
            except BaseException:
                generation.close()
                raise
            if isinstance(answer, Accepted):
                return generation
            # An engine lost before its answer has cost the caller nothing: the next one is asked.
            refused = answer if isinstance(answer, Rejected) else refused
        if refused is not None:
            raise Refused(refused)
        raise NoEngine

    def _candidates(self, prompt_ids: Sequence[int], limits: Limits) -> list[EngineLink]:
        """Return the engines to try, best first: a limited group has one, others prefer the one
        that knows the prefix.
        """
        links = [link for link in self._links.values() if link.is_alive()] or list(
            self._links.values()
        )
        if len(links) < 2:
            return links
        if limits.max_running:
            return sorted(links, key=lambda link: _rank(limits.group, link), reverse=True)[:1]
        prefix = repr(tuple(prompt_ids[:AFFINITY_PREFIX_TOKENS]))
        by_load = sorted(links, key=lambda link: link.num_tokens_in_flight)
        favourite = max(links, key=lambda link: _rank(prefix, link))
        if favourite.num_tokens_in_flight - by_load[0].num_tokens_in_flight > AFFINITY_SLACK_TOKENS:
            return by_load
        return [favourite, *(link for link in by_load if link is not favourite)]

    def _discover(self) -> None:
        while True:
            for path in self._run_dir.glob("engine-*.sock"):
                if path not in self._links and path not in self._connecting:
                    self._connecting.add(path)
                    gevent.spawn(self._serve, path)
            gevent.sleep(DISCOVERY_SECONDS)

    def _serve(self, path: Path) -> None:
        """Hold the connection to one engine, from its hello to its end."""
        try:
            connection, hello = connect(str(path), self._name)
        except (OSError, ConnectionEnded, ProtocolError) as error:
            log.debug("%s: %s", path.name, error)
            self._connecting.discard(path)
            return
        link = EngineLink(connection, hello)
        try:
            self._prepare_in_thread(hello.card)
            self._links[path] = link
            log.info("%s connected, generation %d", path.name, hello.generation)
            link.read()
        except (ConnectionEnded, ProtocolError) as error:
            log.warning("%s lost: %s", path.name, error)
        except ConfigError as error:
            log.critical("%s cannot be used: %s", path.name, error)
            gevent.sleep(UNUSABLE_SECONDS)
        finally:
            self._links.pop(path, None)
            self._connecting.discard(path)
            link.end()

    def _prepare_in_thread(self, card: ModelCard) -> None:
        def work() -> ConfigError | None:
            try:
                self._prepare(card)
            except ConfigError as error:
                return error  # raised in gevent's thread pool it would be printed there
            return None

        error: ConfigError | None = get_hub().threadpool.apply(work)
        if error is not None:
            raise error

    def _keep_time(self) -> None:
        """Ping engines, and let callers who have got nothing for a while have a sign of life."""
        for tick in itertools.count():
            gevent.sleep(1)
            now = time.monotonic()
            for link in list(self._links.values()):
                if tick % PING_SECONDS == 0:
                    link.send(Ping(tick))
                for generation in link.generations():
                    if now - generation.last_sign >= BEAT_SECONDS:
                        generation.touch()
                        generation.put(Beat())


def random_seed() -> int:
    """Return the seed of a request that names none."""
    return secrets.randbits(63)


def _rank(key: str, link: EngineLink) -> bytes:
    """Rendezvous hashing: the engine with the highest rank for a key stays the same when others
    come and go.
    """
    return hashlib.blake2b(f"{link.hello.engine_index} {key}".encode(), digest_size=8).digest()


def _open_page(hello: Hello) -> SharedPage | None:
    try:
        return (
            SharedPage.open(Path(hello.page_path), ENGINE_LAYOUT)
            if os.path.exists(hello.page_path)
            else None
        )
    except PageError as error:
        log.warning("readiness follows pings alone: %s", error)
        return None
