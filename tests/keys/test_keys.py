"""The file of keys, the ring that reads it, `qwenapi keys`, and when keys are asked for."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from qwenapi.cli import main
from qwenapi.keys import ANYONE, KeyRing, key_ring
from qwenapi.keys.command import expiry
from qwenapi.keys.key import STATIC, Key, id_of, new_key
from qwenapi.keys.key_file import edited, read_keys
from qwenapi.keys.mode import settle
from qwenapi.settings.table import Settings
from workers.errors import ConfigError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture(autouse=True)
def look_always(monkeypatch):
    monkeypatch.setattr(key_ring, "POLL_SECONDS", 0.0)


def add(path, **facts):
    fresh = new_key()
    with edited(path) as keys:
        keys.append(Key(fresh.id, fresh.sha256, "acme", **facts))
    return fresh


def test_a_key_has_the_documented_form_and_the_file_only_its_hash(path):
    fresh = add(path)
    prefix, key_id, secret = fresh.text.split("_", 2)
    assert (prefix, len(key_id), len(secret)) == ("qk", 8, 43)
    assert id_of(fresh.text) == fresh.id == key_id
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_replaced_whole_and_a_failed_edit_changes_nothing(path):
    add(path)
    before, inode = path.read_bytes(), path.stat().st_ino
    with pytest.raises(RuntimeError), edited(path) as keys:
        keys.clear()
        raise RuntimeError
    assert (path.read_bytes(), path.stat().st_ino) == (before, inode)
    add(path)
    assert path.stat().st_ino != inode
    assert {file.name for file in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_editors_at_the_same_time_lose_no_key(path):
    command = [sys.executable, "-m", "qwenapi", "keys", "add", "--file", path, "--tenant", "t"]

    def edit(_):
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        printed = list(pool.map(edit, range(6)))
    assert {id_of(text) for text in printed} == {key.id for key in read_keys(path)}
    assert len(set(printed)) == 6


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda document: "{", "no file of keys"),
        (lambda document: "[]", "no file of keys"),
        (lambda document: b"\xff", "no file of keys"),
        (lambda document: document["keys"][0].update(secret="x"), "secret"),
        (lambda document: document["keys"][0].update(scopes=["all"]), "scopes"),
        (lambda document: document["keys"][0].update(tenant=""), "tenant"),
        (lambda document: document["keys"][0].update(sha256="abc"), "sha256"),
        (lambda document: document["keys"][0]["limits"].update(concurrent=-1), "concurrent"),
        (lambda document: document["keys"][0].update(not_after="2026-01-01T00:00:00"), "not_after"),
        (lambda document: document["keys"].append(document["keys"][0]), "same id"),
        (lambda document: document["keys"].extend([document["keys"][0]] * 5000), "larger than"),
    ],
)
def test_a_file_that_is_none_is_refused_by_what_is_wrong(path, spoil, words):
    add(path)
    document = json.loads(path.read_bytes())
    text = spoil(document) or json.dumps(document)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words):
        read_keys(path)


def test_a_file_that_others_may_write_is_refused(path):
    add(path)
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="chmod"):
        read_keys(path)


def test_a_ring_sees_what_is_added_and_disabled(path):
    first = add(path)
    ring = KeyRing(path)
    assert ring.find(first.text).id == first.id
    second = add(path)
    assert ring.find(second.text).id == second.id
    assert main(["keys", "disable", first.id, "--file", str(path)]) == 0
    assert ring.find(first.text) is None
    assert ring.find(second.text).id == second.id


def test_a_file_that_breaks_or_goes_leaves_the_last_keys_and_one_line(path, caplog):
    fresh = add(path)
    ring = KeyRing(path)
    assert ring.find(fresh.text)
    path.write_text("{")
    for _ in range(3):
        assert ring.find(fresh.text)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    path.unlink()
    for _ in range(3):
        assert ring.find(fresh.text)
    assert len(caplog.records) == 2
    assert fresh.text not in caplog.text
    other = add(path)
    assert ring.find(other.text) and ring.find(fresh.text) is None


def test_the_file_is_looked_at_no_more_than_once_a_second(path, monkeypatch):
    first = add(path)
    monkeypatch.setattr(key_ring, "POLL_SECONDS", 3600)
    ring = KeyRing(path)
    assert ring.find(first.text)
    assert ring.find(add(path).text) is None


def test_the_static_key_may_be_any_text_and_stands_beside_a_file(path):
    fresh = add(path)
    ring = KeyRing(path, "dummy-key")
    assert ring.find("dummy-key") is STATIC
    assert ring.find(fresh.text).id == fresh.id
    assert ring.find("") is ring.find("dummy") is ring.find("dummy-key ") is None
    assert KeyRing().is_open and KeyRing().find("") is None


def test_only_a_lower_urgency_than_the_keys_is_honoured():
    fresh = new_key()
    key = Key(fresh.id, fresh.sha256, "acme", priority=-2)
    assert [key.urgency(asked) for asked in (None, -5, -2, 0, 7)] == [-2, -2, -2, 0, 7]
    assert [ANYONE.urgency(asked) for asked in (None, -5, 7)] == [0, -5, 7]
    assert [STATIC.urgency(asked) for asked in (None, -5, 7)] == [0, 0, 7]


def test_the_command_prints_a_secret_once_and_never_again(path, capsys):
    flags = ["--file", str(path), "--tenant", "acme", "--scope", "inference", "--rpm", "60"]
    flags += ["--tpm", "9000", "--concurrent", "3", "--queued", "0", "--model", "MyCoder"]
    flags += ["--priority", "-1", "--expires", "2099-01-31"]
    assert main(["keys", "add", *flags]) == 0
    shown = capsys.readouterr()
    text = shown.out.strip()
    (key,) = read_keys(path)
    assert id_of(text) == key.id and text not in shown.err
    assert key.limits.requests_per_minute == 60 and key.limits.queued == 0
    assert key.not_after == datetime(2099, 1, 31, tzinfo=UTC)
    assert main(["keys", "list", "--file", str(path)]) == 0
    listed = capsys.readouterr().out
    assert f"{key.id}  active    acme" in listed and "rpm=60" in listed and "MyCoder" in listed
    assert text[12:] not in listed and key.sha256 not in listed


@pytest.mark.parametrize(
    "flags",
    [
        ["add", "--tenant", "a/b"],
        ["add", "--tenant", "a", "--rpm", "-1"],
        ["disable", "aaaaaaaa"],
        ["list"],
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_key(path, flags, capsys):
    assert main(["keys", *flags, "--file", str(path)]) == 78
    assert capsys.readouterr().err.count("\n") == 1
    assert not path.exists() or not read_keys(path)


def test_the_file_may_be_named_by_the_servers_own_variable(path, monkeypatch, capsys):
    assert main(["keys", "list"]) == 78
    monkeypatch.setenv("QWENAPI_AUTH_KEYS", str(path))
    assert main(["keys", "add", "--tenant", "acme"]) == 0
    assert len(read_keys(path)) == 1


def test_an_expiry_is_a_date_or_days_from_now():
    now = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert expiry("90d", now) == datetime(2030, 4, 1, 12, tzinfo=UTC)
    assert expiry("2030-05-01T10:00:00+02:00").utcoffset().total_seconds() == 7200
    with pytest.raises(ValueError):
        expiry("tomorrow")


def test_keys_that_are_there_are_asked_for_whatever_the_mode_says(path, tmp_path):
    add(path)
    for mode in (None, "open", "keys"):
        given = Settings(auth_mode=mode, auth_keys=str(path))
        assert settle(given, "0.0.0.0", {}).auth_mode == "keys"
        assert settle(Settings(auth_mode=mode, api_key="k"), "", {}).auth_mode == "keys"
    found = settle(Settings(), "127.0.0.1", {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (found.auth_mode, found.auth_keys) == ("keys", str(path))


def test_without_keys_only_loopback_or_a_profile_that_says_so_is_open(capsys):
    for host in ("127.0.0.1", "::1", ""):
        assert settle(Settings(), host, {}).auth_mode == "open"
    assert not capsys.readouterr().err
    with pytest.raises(ConfigError, match="auth.mode"):
        settle(Settings(), "0.0.0.0", {})
    assert settle(Settings(auth_mode="open"), "0.0.0.0", {}).auth_mode == "open"
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(ConfigError, match="auth.mode is keys"):
        settle(Settings(auth_mode="keys"), "127.0.0.1", {})


@pytest.mark.parametrize("key", ["a b", "é", "x" * 257, "a\n"])
def test_a_static_key_no_caller_could_send_is_refused_without_showing_it(key):
    with pytest.raises(ConfigError) as raised:
        settle(Settings(api_key=key), "", {})
    assert key not in str(raised.value)


def test_a_static_key_is_in_no_representation_and_in_no_flags_of_children(monkeypatch):
    from qwenapi.cli import _without_key

    monkeypatch.setenv("QWENAPI_API_KEY", "")
    assert "sesame" not in repr(Settings(api_key="sesame"))
    assert _without_key(["--port", "0", "--api-key", "sesame"]) == ["--port", "0"]
    assert os.environ["QWENAPI_API_KEY"] == "sesame"
    assert _without_key(["--api-key=open", "--stub"]) == ["--stub"]
    assert os.environ["QWENAPI_API_KEY"] == "open"
