"""What a reload makes of the answer of the process that reads the settings anew."""

import json
import sys

import pytest

from qwenapi.serving import config_reload
from qwenapi.serving.config_reload import ConfigReload
from qwenapi.serving.startup_config import StartupConfig
from qwenapi.settings.table import Settings
from tests.running_server import wait_for
from workers.errors import ConfigError

NOW = StartupConfig.read({"max_body_bytes": 2048})
ANSWER = json.loads(NOW.to_json())


@pytest.fixture
def reload(monkeypatch, tmp_path):
    """Return what a reload reads from a process that prints `text`; its children are its bytes."""

    def reload(text, code=0):
        reader = tmp_path / "reader"
        program = f"import sys; sys.stdout.write({text!r}); sys.exit({code})"
        reader.write_text(f"#!{sys.executable} -S\n{program}\n")
        reader.chmod(0o700)
        monkeypatch.setattr(config_reload.sys, "executable", str(reader))
        read = ConfigReload("http", [], NOW.settings, lambda new: [new.settings.max_body_bytes])
        return wait_for(read.poll)

    return reload


def answer(**changes):
    return json.dumps(ANSWER | changes)


@pytest.mark.parametrize(
    "text",
    [
        answer(),
        "a library says hello\n" + answer(),
        "[1, 2]\n" + answer() + "\nat the end: bye\n",
        '"quoted"\n\n' + answer() + '\n{"event": "bye"}\n',
    ],
)
def test_lines_that_others_have_printed_are_passed_over(reload, text):
    assert reload(text) == [2048]


def test_settings_of_another_version_are_taken_as_far_as_they_are_known(reload):
    settings = {k: v for k, v in ANSWER["settings"].items() if k != "max_body_bytes"}
    known = reload(answer(settings=settings | {"invented_later": [1, {"x": None}]}, also_new=1))
    assert known == [Settings().max_body_bytes]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello\n",
        "hello " + answer(),
        answer()[:-20],
        "[]",
        "{}",
        json.dumps({"settings": ANSWER["settings"]}),
        json.dumps({"profiles": ANSWER["profiles"]}),
        answer(settings=None),
        answer(settings=[]),
        answer(profiles=7),
        answer(profiles=[{}]),
        answer(profiles=[{"settings": {}}]),
        answer(settings=ANSWER["settings"] | {"api_server_count": "two"}),
        answer(settings=ANSWER["settings"] | {"log_requests": {"all": True}}),
    ],
)
def test_an_answer_that_cannot_be_understood_is_refused_in_words(reload, text):
    with pytest.raises(ConfigError, match="restart"):
        reload(text)


def test_a_reader_that_fails_is_quoted(reload):
    with pytest.raises(ConfigError, match="could not be read"):
        reload(answer(), code=78)


def test_what_only_a_restart_changes_is_refused(reload):
    with pytest.raises(ConfigError, match="drain_timeout cannot change"):
        reload(answer(settings=ANSWER["settings"] | {"drain_timeout": 1.0}))
