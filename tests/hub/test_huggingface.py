"""Models by their name on a hub: fetched once, whole, compared, and found again without a hub."""

import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qwenapi.settings.table import etc_dir
from tests.checkpoint.folders import INDEX, shard, write_folder
from tests.hub.hub_server import COMMIT, REPO, TOKEN, HubServer
from tests.running_server import wait_for
from workers.checkpoint.checkpoint import Checkpoint
from workers.errors import ExitCode

UNWANTED = (
    "pytorch_model.bin",
    "model.gguf",
    "modeling_tiny.py",
    "README.md",
    "onnx/a.safetensors",
)
FIRST = "model-00001-of-00002.safetensors"
PIECE = 10 << 20  # what came is written by the library in such pieces
CLOSED = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens


@pytest.fixture
def source(tmp_path) -> Path:
    """Return a small model that can be served, of two shards, beside files that nobody reads."""
    folder = write_folder(tmp_path / "source")
    shard(folder)
    (folder / "onnx").mkdir()
    for name in UNWANTED:
        (folder / name).write_bytes(b"never fetched")
    return folder


@pytest.fixture
def hub(source):
    return HubServer(source)


@pytest.fixture
def environ(tmp_path):
    """Return the variables of a process whose cache is its own; `home` may be set anew."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "VLLM_"))}
    return kept | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}


@pytest.fixture
def fetch(environ, tmp_path):
    def fetch(endpoint: str, model: str = REPO, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "tests.hub.fetch_once", model],
            env=environ | {"HF_ENDPOINT": endpoint} | more,
            cwd=etc_dir().parent,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return fetch


def refused(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the one sentence of a fetch that was refused."""
    assert done.returncode == ExitCode.CONFIG, done.stderr
    return done.stderr.strip().splitlines()[-1]


def folder_of(done: "subprocess.CompletedProcess[str]") -> Path:
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_only_what_is_read_is_fetched_and_only_once(hub, fetch, source):
    with hub.running() as endpoint:
        done = fetch(endpoint)
        folder = folder_of(done)
        names = {file.name for file in folder.iterdir()}
        assert names == {file.name for file in source.iterdir()} - {*UNWANTED, "onnx"}
        assert all((folder / name).read_bytes() == hub.files[name] for name in names)
        assert folder.name == COMMIT
        Checkpoint.at(folder).check()
        assert f"{REPO}: fetching 0." in done.stderr and f"{REPO}: fetched 0." in done.stderr
        hub.requests.clear()
        again = fetch(endpoint)
        assert folder_of(again) == folder and not hub.fetched and not again.stderr


def test_a_revision_stands_behind_the_name(hub, fetch):
    with hub.running() as endpoint:
        assert folder_of(fetch(endpoint, f"{REPO}@{COMMIT}")).name == COMMIT
        words = refused(fetch(endpoint, f"{REPO}@v2"))
    assert words.startswith(f"{REPO}@v2: {endpoint} has the model, but no revision 'v2'")


def test_a_cut_connection_goes_on_where_it_broke(hub, fetch):
    hub.files[FIRST] += bytes(3 * PIECE)
    hub.cut_once = {FIRST}
    with hub.running() as endpoint:
        folder_of(fetch(endpoint))
    ranges = [asked for method, path, asked in hub.requests if path.endswith(FIRST) and asked]
    assert ranges == [f"bytes={PIECE}-"]


def test_finished_files_are_kept_by_a_fetch_that_broke_off(hub, fetch):
    """A file of another size than the hub says is fetched again."""
    second = "model-00002-of-00002.safetensors"
    hub.garbled = {second}
    with hub.running() as endpoint:
        words = refused(fetch(endpoint))
        assert f"{second} arrived with the hash" in words and "start again" in words
        hub.garbled, hub.requests = set(), []
        folder = folder_of(fetch(endpoint))
        assert hub.fetched == [second]
        os.truncate(folder / second, 100)
        assert folder_of(fetch(endpoint)) == folder
        assert (folder / second).read_bytes() == hub.files[second]


def test_small_files_are_compared_too(hub, fetch):
    hub.garbled = {"config.json"}
    with hub.running() as endpoint:
        assert f"{REPO}: config.json arrived with the hash" in refused(fetch(endpoint))


@pytest.mark.parametrize(("endpoint", "offline"), [(CLOSED, "0"), (CLOSED, "1")])
def test_a_cached_model_is_served_without_a_hub(hub, fetch, endpoint, offline):
    words = refused(fetch(endpoint, HF_HUB_OFFLINE=offline))
    reason = "HF_HUB_OFFLINE is set" if offline == "1" else f"{endpoint} cannot be reached"
    assert words.startswith(f"{REPO}: not cached in") and f"and {reason}" in words
    with hub.running() as open_endpoint:
        folder = folder_of(fetch(open_endpoint))
    done = fetch(endpoint, HF_HUB_OFFLINE=offline)
    assert folder_of(done) == folder
    said = done.stderr.strip()
    assert said.startswith(f"{REPO}: {reason}") and "the cached copy of commit 0123456789ab" in said
    (folder / FIRST).unlink()
    assert "not cached" in refused(fetch(endpoint, HF_HUB_OFFLINE=offline))


def test_a_gated_model_wants_a_token(hub, fetch):
    hub.needs_token = True
    with hub.running() as endpoint:
        words = refused(fetch(endpoint))
        assert words == (
            f"{REPO}: access is gated; accept its terms at {endpoint}/{REPO} and set HF_TOKEN to a"
            " token of that account"
        )
        folder_of(fetch(endpoint, HF_TOKEN=TOKEN))
        assert "with HF_HUB_OFFLINE=1 the cached copy is served" in refused(fetch(endpoint))


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        ((403, ""), "refuses who has no token (403); set HF_TOKEN"),
        ((401, ""), "no such directory here, and no such model at"),
        ((404, "RepoNotFound"), "no such directory here, and no such model at"),
        ((503, ""), "answers 503; fetch it where there is a connection"),
        ((429, ""), "answers 429; fetch it where there is a connection"),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(hub, fetch, refusal, expected):
    hub.refusal = refusal
    with hub.running() as endpoint:
        done = fetch(endpoint)
    assert expected in refused(done) and done.stderr.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_named(hub, fetch, tmp_path):
    (tmp_path / "file").write_text("")
    with hub.running() as endpoint:
        words = refused(fetch(endpoint, HF_HUB_CACHE=str(tmp_path / "file" / "hub")))
    assert words.startswith(f"{REPO}: cannot write to {tmp_path}/file/hub, Not a directory")


def test_a_broken_fetch_says_so(hub, fetch):
    hub.always_cut = {"tokenizer_config.json"}
    with hub.running() as endpoint:
        words = refused(fetch(endpoint))
    assert words.startswith(f"{REPO}: the fetch broke off, ") and "start again" in words


def test_a_model_that_cannot_be_served_is_refused_before_its_weights(hub, fetch):
    config = hub.files["config.json"].replace(b"Qwen3ForCausalLM", b"LlamaForCausalLM")
    hub.files["config.json"] = config
    with hub.running() as endpoint:
        assert "architecture LlamaForCausalLM" in refused(fetch(endpoint))
        assert not any(name.endswith(".safetensors") for name in hub.fetched)
        del hub.files["config.json"]
        assert refused(fetch(endpoint)) == (
            f"{REPO}: the repository has no config.json, but GGUF files, which llama.cpp reads;"
            " choose another model"
        )


def test_an_index_names_files_that_are_there(hub, fetch):
    del hub.files["model-00002-of-00002.safetensors"]
    with hub.running() as endpoint:
        words = refused(fetch(endpoint))
    assert f"{INDEX}: names model-00002-of-00002.safetensors, which is not there" in words


def test_a_full_disk_is_told_before_anything_is_fetched(hub, fetch, monkeypatch):
    entry = hub.entry

    def huge(name):
        found = entry(name)
        return found | {"size": 10**18} if name.endswith("2.safetensors") else found

    hub.entry = huge
    with hub.running() as endpoint:
        words = refused(fetch(endpoint))
        assert not any(name.endswith(".safetensors") for name in hub.fetched)
    assert "GB are to be fetched, but" in words and "set HF_HOME to a folder on a larger" in words


def test_a_bar_with_rate_and_time_left_is_drawn_on_a_terminal(hub, environ):
    hub.files[FIRST] += bytes(3 * PIECE)
    hub.seconds_a_piece = 0.05
    master, slave = pty.openpty()
    with hub.running() as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.fetch_once", REPO],
            env=environ | {"HF_ENDPOINT": endpoint, "TERM": "xterm", "COLUMNS": "120"},
            cwd=etc_dir().parent,
            stdout=subprocess.DEVNULL,
            stderr=slave,
        )
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        os.close(master)
        assert process.wait(60) == 0, shown
    assert re.search(rb"org/tiny .*\d+\.\d/\d+\.\d MB.*MB/s.*0:00:0", shown), shown


def test_an_interrupted_fetch_ends_at_once_and_its_rest_is_removed_in_time(hub, environ, fetch):
    hub.files[FIRST] += bytes(3 * PIECE)
    hub.seconds_a_piece = 1.0
    blobs = Path(environ["HF_HOME"], "hub", "models--org--tiny", "blobs")
    with hub.running() as endpoint:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.fetch_once", REPO],
            env=environ | {"HF_ENDPOINT": endpoint},
            cwd=etc_dir().parent,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: FIRST in hub.fetched)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        [left] = blobs.glob("*.incomplete")
        hub.seconds_a_piece = 0
        folder_of(fetch(endpoint, f"{REPO}@{COMMIT}"))
        assert left.exists(), "another process could still write to it"
        (blobs.parent / "snapshots" / COMMIT / FIRST).unlink()
        os.utime(left, (0, 0))
        folder_of(fetch(endpoint))
        assert not left.exists()


def test_a_command_ends_with_its_sentence(hub, environ):
    hub.refusal = (404, "RepoNotFound")
    for command, code in (("serve", 78), ("model", 78), ("check", 0), ("doctor", 0)):
        with hub.running() as endpoint:
            done = subprocess.run(
                [sys.executable, "-m", "qwenapi", command, "--model", REPO],
                env=environ | {"HF_ENDPOINT": endpoint},
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.returncode == code, done.stdout + done.stderr
        if code:
            assert done.stderr.startswith(f"qwenapi: {REPO}: no such directory here, and no such")
        if command == "doctor":
            assert f"warning  model          {REPO} is not fetched yet" in done.stdout
            assert not hub.requests
        hub.requests.clear()
