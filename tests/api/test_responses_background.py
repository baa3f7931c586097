"""A response in the background whose storage fails now and then."""

from types import SimpleNamespace

import orjson
import pytest

from qwenapi.api.responses import background
from qwenapi.conversations import StorageUnavailable, StoreFull

BEGUN = {
    "id": "resp_1",
    "previous_response_id": None,
    "created_at": 1,
    "status": "in_progress",
    "output": [],
}
ENDED = BEGUN | {"status": "completed"}


class Running:
    """A running response whose storage raises these errors before it works."""

    def __init__(self, update=(), end=()):
        self.errors = {"update": list(update), "end": list(end)}
        self.said = []
        self.is_lost = False

    def update(self, response):
        self._take("update", response)

    def end(self, response):
        self._take("end", response)

    def abandon(self):
        pass

    def _take(self, step, response):
        if self.errors[step]:
            raise self.errors[step].pop(0)
        self.said.append(orjson.loads(response.body))


class Writer:
    """Begins, and ends as a response that is kept."""

    keep = None

    def body(self, watch):
        watch()
        self.keep(ENDED)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)

    def run(running):
        stream = SimpleNamespace(close=lambda error: None)
        wording = SimpleNamespace(message=str)
        one = background.BackgroundRun(running, stream, BEGUN, [], wording)
        writer = Writer()
        writer.keep = one.keep
        one.run(writer)
        return [(body["status"], body.get("error")) for body in running.said]

    return run


def test_a_storage_that_fails_as_a_response_begins_ends_nothing(run):
    assert run(Running(update=[StorageUnavailable()])) == [("completed", None)]


def test_an_answer_is_kept_once_the_storage_is_back(run):
    said = run(Running(end=[StorageUnavailable(), StorageUnavailable()]))
    assert said == [("in_progress", None), ("completed", None)]


def test_a_storage_that_stays_away_is_not_waited_for_longer_than_a_lease(run, monkeypatch):
    monkeypatch.setattr(background, "KEEP_SECONDS", 0.02)
    assert run(Running(end=[StorageUnavailable()] * 1000)) == [("in_progress", None)]


def test_an_answer_without_room_is_told_so(run):
    (_, (status, error)) = run(Running(end=[StoreFull()]))
    assert (status, error["message"]) == ("failed", StoreFull.sentence)
