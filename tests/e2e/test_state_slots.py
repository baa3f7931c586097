"""State slots of a hybrid model, from its engine to whoever watches the server."""

import json
import shutil

import pytest
import requests

from qwenapi.settings.table import etc_dir
from tests.commands.test_top import top
from tests.e2e.browser.chromium import browser_fixture  # noqa: F401
from tests.engine.conftest import write_model

DEMO = etc_dir() / "models" / "demo"


@pytest.fixture
def server(start_server, tmp_path):
    """Return a server of a tiny hybrid that has answered one prompt of 200 tokens twice."""
    folder = tmp_path / "hybrid"
    write_model(folder, "qwen3_5", vocab_size=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    flags = ("--model", str(folder), "--dtype", "float32", "--threads", "1", "--num-blocks", "64")
    server = start_server(*flags, "--max-num-seqs", "4")
    asked = {"prompt": list(range(10, 210)), "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    for _ in range(2):
        assert server.post("/v1/completions", asked).status_code == 200
    server.wait_until_idle()
    return server


def test_every_place_that_shows_blocks_shows_them(browser, server):
    text = requests.get(server.url + "/metrics/prometheus", timeout=30).text
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if "state_" in line[:30])
    found = {name: float(value) for name, value in samples.items() if "{" in name}
    total = found['qwenapi_engine_state_slots{engine="0"}']
    assert total >= 4
    assert found['qwenapi_engine_state_slots_used{engine="0"}'] == 0
    assert found['qwenapi_engine_state_snapshots{engine="0"}'] == 1
    assert found['qwenapi_engine_state_snapshot_hits_total{engine="0"}'] == 1

    expected = {"total": total, "used": 0, "snapshots": 1, "snapshot_hits": 1}
    assert server.get("/ui/status.json").json()["engines"][0]["state_slots"] == expected
    shown = json.loads(top("--run-dir", str(server.run_dir), "--json").stdout)
    assert shown["engines"][0]["state_slots"] == expected

    with browser.open(server.url + "/ui/status", ready="#engines tbody tr >> nth=0") as page:
        row = page.evaluate(
            "[...document.querySelectorAll('#engines tr')]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
    titles, cells = row
    assert dict(zip(titles, cells, strict=True)).items() >= {
        "State slots used": f"0 / {total:g}", "Snapshots": "1", "Snapshot hits": "1"
    }.items()  # fmt: skip
