"""Callers: they ask again and again until told to stop, and note what came of each request."""

import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import requests

from tests.chaos.accounts import Range, Told
from tests.chaos.asks import BROWSER, CHAT, SLOWLY, Ask, NotWhole
from tests.chaos.world import TURN_TOKENS, World, error_of

# What a caller may be told when he is refused, or in his stream; each stands in the documentation.
DOCUMENTED = re.compile(
    "engine_unavailable|queue_full|queue_timeout|server_shutdown|rate_limit|overloaded|"
    "engine_failed|storage|model_changed|response.failed|api_error|"
    "failed None|503|507|409|response.failed|error engine|error server"
)
# Tokens where no answer says how many.
PROMPT_TOKENS, CONTEXT_TOKENS = Range(0, 200), Range(0, 8192)
PREFACE = re.compile(r"conversation_id:([0-9a-f-]{36})\n---\n")


@dataclass
class Record:
    """What came of all requests: how many were whole, and how the others ended."""

    whole: Counter[str] = field(default_factory=Counter)
    documented: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    cut: list[tuple[float, str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_turn: float = 0.0
    health: list[float] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)  # bytes, under pressure

    @property
    def num_requests(self) -> int:
        counted = (self.whole, self.documented, self.left)
        return sum(map(Counter.total, counted)) + len(self.cut) + len(self.wrong)


class Crowd:
    """The threads of all callers."""

    def __init__(self, world: World, asks: list[Ask], seed: int) -> None:
        self.record = Record()
        self.conversations: dict[str, list[tuple[str, str]]] = {}
        self.is_over = threading.Event()
        self.may_be_refused = threading.Event()  # while the second tenant's key is disabled
        self._world, self._asks, self._seed = world, asks, seed
        jobs = [*[self._ask] * 6, *[self._talk] * 2, self._leave, self._read_slowly, self._watch]
        self._threads = [
            threading.Thread(target=self._run, args=(job, number))
            for number, job in enumerate(jobs)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let everybody finish what he asked for last."""
        self.is_over.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a caller still waits: his answer has no end"

    def burst(self, num: int) -> None:
        """Ask many things at once."""
        dice = random.Random(num)
        threads = [
            threading.Thread(target=self.ask_once, args=(dice.choice(self._asks),))
            for _ in range(num)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(180)

    def ask_once(self, ask: Ask, tenant: str = "a") -> None:
        started = time.monotonic()
        texts = None
        try:
            texts = ask.answer(self._world, tenant=tenant)
        except NotWhole as error:
            if "401" in str(error) and tenant == "b" and self.may_be_refused.is_set():
                self.record.documented["401 of a disabled key"] += 1
            else:
                self._note_error(ask.name, str(error))
            return
        except (OSError, ValueError, requests.RequestException) as error:
            self.record.cut.append((started, ask.name, repr(error)[:150]))
            return
        finally:
            self.record.told.append(ask.told(texts))
        if ask.matches(texts, is_stub=self._world.model == "stub"):
            self.record.whole[ask.name] += 1
        else:
            self.record.wrong.append(f"{ask.name}: {texts!r:.600} for {ask.expected!r:.600}")

    def _note_error(self, name: str, words: str) -> None:
        if DOCUMENTED.search(words):
            self.record.documented[words] += 1
        else:
            self.record.wrong.append(f"{name}: {words}")

    def _run(self, job, number: int) -> None:  # type: ignore[no-untyped-def]
        dice = random.Random(self._seed * 1000 + number)
        while not self.is_over.is_set():
            try:
                job(dice, number)
            except Exception as error:
                self.record.wrong.append(f"a caller of {job.__name__} failed: {error!r}")
                return
            time.sleep(dice.uniform(0, 0.05))

    def _ask(self, dice: random.Random, number: int) -> None:
        self.ask_once(dice.choice(self._asks), "b" if number == 0 else "a")

    def _leave(self, dice: random.Random, number: int) -> None:
        """Begin an answer and go, sometimes before it has begun."""
        said = [{"role": "user", "content": f"leave {dice.random()}"}]
        body = BROWSER | {"max_tokens": 2000, "messages": said}
        try:
            seconds = (5, dice.choice([0.01, 0.05, 30]))
            with self._world.post(CHAT, body, stream=True, timeout=seconds) as answer:
                for _ in range(dice.randrange(5)):
                    next(answer.iter_content(20), None)
        except requests.RequestException:
            pass
        self.record.left["went"] += 1
        completion = Range(0, body["max_tokens"])
        self.record.told.append(Told("browser", False, PROMPT_TOKENS, completion))

    def _read_slowly(self, dice: random.Random, number: int) -> None:
        self.ask_once(next(ask for ask in self._asks if ask.name == SLOWLY))

    def _talk(self, dice: random.Random, number: int) -> None:
        """Have a conversation of some turns; each must be kept once acknowledged, in its place."""
        acknowledged: list[tuple[str, str]] = []
        conversation = None
        for turn in range(4):
            if self.is_over.is_set():
                break
            prompt = f"{number} {turn} {dice.random()}"
            body = {"prompt": prompt, "temperature": 0}
            body |= {"conversation_id": conversation} if conversation else {}
            text = self._turn(body)
            completion = Range(int(text is not None), TURN_TOKENS)
            self.record.told.append(Told("coder", text is not None, CONTEXT_TOKENS, completion))
            if text is None:
                continue
            if found := PREFACE.match(text):
                conversation, text = found[1], text[found.end() :]
                self.conversations[conversation] = acknowledged
            acknowledged.append((prompt, text))
            self.record.whole["turn"] += 1

    def _turn(self, body: dict[str, object]) -> str | None:
        """Return what came of a turn that was acknowledged, else None."""
        started = time.monotonic()
        try:
            answer = self._world.post("/v1/code/chat_stream", body)
        except (requests.RequestException, OSError) as error:
            self.record.cut.append((started, "turn", repr(error)[:150]))
            return None
        if answer.status_code != 200:
            self._note_error("turn", error_of(answer))
            time.sleep(0.2)
            return None
        self.record.slowest_turn = max(self.record.slowest_turn, time.monotonic() - started)
        return answer.content.decode()

    def _watch(self, dice: random.Random, number: int) -> None:
        started = time.monotonic()
        try:
            self._world.get("/livez")
            self.record.health.append(time.monotonic() - started)
        except requests.RequestException as error:
            self.record.cut.append((started, "livez", repr(error)[:150]))
