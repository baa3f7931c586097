"""Replays: requests whose engine is lost go on in another, or in its successor.

    lost ─► waiting ─► asked again, with the ids so far, 16 first, then 32, …
              │
              └ lost twice: a suspect ─► isolated: alone on an engine, for 16 tokens or to its end
                                            ├ still running ─► acquitted, goes on like any other
                                            └ lost alone a second time
                                                 ─► guilty: failed and quarantined

A suspect is a request that was on two engines when they crashed, less than 16 tokens apart, and so
may be what kills them: whoever is given 16 tokens, alone or in company, is acquitted of what was
before. So engines that end for reasons of their own, however often, cost nobody an answer; and a
request that ends them always does so at the same place, or every few tokens. It is failed after
MAX_REPLAYS replays or MAX_WAIT_SECONDS without an engine, both since it was acquitted last, and
after MAX_LOSSES in all. While suspects are left nothing else is asked of the engines, by this HTTP
process and, as far as the IsolationLock reaches, by others; nobody's time runs meanwhile. What
others had already asked can still be in an engine beside a suspect: an engine that is idle is
waited for.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gevent.event import Event

from qwenapi.engines.generation import ACQUITTAL_TOKENS, Generation
from qwenapi.engines.isolation import IsolationLock
from qwenapi.engines.link import EngineLink
from qwenapi.engines.quarantine import Quarantine
from qwenapi.engines.routing import Router
from workers.wire.protocol import Finished, Rejected

log = logging.getLogger(__name__)

MAX_REPLAYS = 3
MAX_LOSSES = 20
MAX_WAIT_SECONDS = 60.0
SUSPECT_CRASHES = 2
FIRST_WAVE = 16
# A wave is followed by the next when all of it is computed, or after so long.
WAVE_SECONDS = 1.0
TICK_SECONDS = 0.02


class Replays:
    """Implements qwenapi.engines.link.ReplayHandler."""

    def __init__(
        self,
        run_dir: Path,
        links: Callable[[], Sequence[EngineLink]],
        on_free: Callable[[], None],
        quarantine: Quarantine,
        router: Router,
    ) -> None:
        """`on_free` is called when no suspect is left, and anything may be asked again."""
        self.num_replays = 0
        self.quarantine = quarantine
        self.waiting: list[Generation] = []
        self._links = links
        self._router = router
        self._on_free = on_free
        self._lock = IsolationLock(run_dir)
        self._suspect: Generation | None = None
        self._suspect_tokens = 0
        self._wave: list[Generation] = []
        self._wave_size, self._wave_sent = FIRST_WAVE, 0.0
        self._ticked_at = time.monotonic()
        self._changed = Event()

    @property
    def is_isolating(self) -> bool:
        """Return whether nothing new may be asked of the engines, to leave a suspect alone."""
        return self._lock.is_mine or self._has_suspects or self._lock.is_elsewhere()

    @property
    def has_interrupted(self) -> bool:
        """Return whether one that had begun waits to be asked again, which comes before all new."""
        return any(generation.has_started for generation in self.waiting)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            is_busy = self.waiting or self._suspect or self._lock.is_mine
            self._changed.wait(TICK_SECONDS if is_busy else None)
            self._changed.clear()
            self.tick()

    def on_lost(self, generations: Sequence[Generation], *, is_planned: bool) -> None:
        """Take over what a lost engine owed; nobody is to blame for an end that was planned."""
        self._wave_size, self._wave = FIRST_WAVE, []
        before = self.num_replays
        for generation in generations:
            if generation.is_over:
                continue  # failed here, which its engine was about to be told
            if not generation.is_accepted:
                generation.fail("engine_lost")  # it was never told so: whoever asks, asks elsewhere
            elif not generation.open_choices:
                prompt_tokens = len(generation.request.prompt_ids)
                generation.end(Finished(generation.wid, prompt_tokens, generation.num_tokens))
            else:
                self._take_over(generation, is_planned)
        if self.num_replays > before:
            log.warning("an engine left %d requests to go on with", self.num_replays - before)
        self._changed.set()

    def on_refused(self, generation: Generation, rejected: Rejected) -> None:
        """Take back what an engine would not go on with."""
        if rejected.reason in ("invalid", "too_long"):
            generation.fail("model_changed")
            return
        if generation is self._suspect:
            self._suspect = None
        generation.wait()
        self.waiting.append(generation)

    def wake(self) -> None:
        """Tick at once, as an engine has come."""
        self._changed.set()

    def tick(self) -> None:
        """Do what the state of the engines allows."""
        self._drop_ended()
        if self._has_suspects:
            if self._lock.acquire():
                self._isolate()
            return
        if self._lock.is_mine:
            self._lock.release()
            self._on_free()
        if self.waiting and not self._lock.is_elsewhere():
            self._send_waves()

    @property
    def _has_suspects(self) -> bool:
        return self._suspect is not None or any(map(_is_suspect, self.waiting))

    def _take_over(self, generation: Generation, is_planned: bool) -> None:
        was_alone = generation is self._suspect
        generation.lose(is_planned=is_planned)
        if was_alone:
            self._suspect = None
            generation.num_lonely_losses += not is_planned
        if generation.num_lonely_losses > 1:  # once may be chance
            log.error(
                "request %s kills engines: refused from now on", generation.request.request_id
            )
            self.quarantine.add(generation.request)
            generation.fail("engine_crash")
        elif generation.num_losses > MAX_REPLAYS or generation.total_losses > MAX_LOSSES:
            generation.fail("engine_unavailable")
        else:
            self.num_replays += 1
            self.waiting.append(generation)

    def _drop_ended(self) -> None:
        hashes = {link.hello.card.model_hash for link in self._links()}
        now = time.monotonic()
        since_tick, self._ticked_at = now - self._ticked_at, now
        if hashes and self.waiting and self.is_isolating:
            for generation in self.waiting:  # it waits for suspects, and not for an engine
                generation.excuse(since_tick)
        for generation in self.waiting:
            if generation.is_over:
                continue  # its caller has gone, or has enough
            if generation.seconds_waited > MAX_WAIT_SECONDS:
                generation.fail("engine_unavailable")
            elif hashes and generation.model_hash not in hashes:
                generation.fail("model_changed")
        self.waiting = [generation for generation in self.waiting if not generation.is_over]

    def _isolate(self) -> None:
        """Let the suspects run, one by one, each alone."""
        suspect = self._suspect
        others = [generation for generation in self.waiting if _is_suspect(generation)]
        if suspect is not None:
            if not suspect.is_over:
                if suspect.num_tokens - self._suspect_tokens < ACQUITTAL_TOKENS:
                    return
                suspect.acquit()
                if others:
                    suspect.step_back()
                    self.waiting.append(suspect)
            self._suspect = None
        if others:
            self._send_suspect(others[0])

    def _send_suspect(self, suspect: Generation) -> None:
        links = [link for link in self._usable(suspect) if link.is_idle()]
        if links:
            self._suspect, self._suspect_tokens = suspect, suspect.num_tokens
            self._send(suspect, links[0])

    def _send_waves(self) -> None:
        """Not all at once: every replay has its whole text computed anew."""
        is_done = all(g.is_over or not g.is_waiting for g in self._wave)
        if not is_done and time.monotonic() - self._wave_sent < WAVE_SECONDS:
            return
        wave = []
        # Those that had begun first.
        for generation in sorted(self.waiting, key=lambda g: not g.has_started)[: self._wave_size]:
            usable = self._usable(generation)
            if links := self._router.candidates(usable, generation.request):
                self._send(generation, links[0])
                wave.append(generation)
        if wave:
            self._wave, self._wave_size = wave, 2 * self._wave_size
            self._wave_sent = time.monotonic()

    def _usable(self, generation: Generation) -> list[EngineLink]:
        return [
            link
            for link in self._links()
            if link.hello.card.model_hash == generation.model_hash and link.is_alive()
        ]

    def _send(self, generation: Generation, link: EngineLink) -> None:
        self.waiting.remove(generation)
        left = max(1.0, MAX_WAIT_SECONDS - generation.seconds_waited)
        has_queue_time = not generation.has_started
        generation.prepare_attempt(generation.request.queue_timeout if has_queue_time else left)
        link.adopt(generation)


def _is_suspect(generation: Generation) -> bool:
    return generation.crash_count >= SUSPECT_CRASHES and not generation.is_over
