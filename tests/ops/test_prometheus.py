"""A real Prometheus scrapes a real server: every panel has data, every alert fires and clears."""

import json
import math
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenapi.settings.table import Settings
from tests.metrics.callers import chat, coder, completions
from tests.ops.prometheus import (
    CONFIG,
    DASHBOARD,
    PANELS,
    RULES,
    VARIABLES,
    Prometheus,
    needs_prometheus,
    replaced,
)
from tests.running_server import RunningServer, wait_for

pytestmark = needs_prometheus


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = "--stub --stub-step-seconds 0.01 --profile all --data-parallel-size 2".split()
    server = RunningServer(
        tmp_path_factory.mktemp("scraped"), *flags, "--api-server-count", "2",
        "--default-max-tokens", "30",
    )  # fmt: skip
    try:
        yield server.wait_until_ready()
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    found = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def traffic(server, prometheus):
    """Let Prometheus see requests of every ending, more than 20 of them, most of them failed."""
    wait_for(lambda: len(prometheus.values("qwenapi_ready")) >= 3)
    callers = [
        *(chat("news", 60) for _ in range(45)),  # three run and ten wait
        *(chat(profile, 40, stream=True) for profile in ("openai", "guide", "browser") * 2),
        completions(20),
        coder(30, 0, stream=True),
        chat("openai", 4000, stream=True, cut_after=5),
    ]
    with ThreadPoolExecutor(len(callers)) as pool:
        told = list(pool.map(lambda caller: caller.ask(server), callers))
    assert {one.ending for one in told} == {"whole", "failed", "cut"}
    num_whole = sum(one.ending == "whole" for one in told)
    counted = 'sum(qwenapi_requests_total{outcome="successful"})'
    wait_for(lambda: prometheus.values(counted, is_instant=True) == [num_whole])
    return told


def test_an_error_rate_fires_and_clears(traffic, prometheus):
    wait_for(lambda: "QwenapiErrorRate" in prometheus.firing(), 20)
    wait_for(lambda: not prometheus.firing(), 30, prometheus.firing)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_data(traffic, prometheus, panel):
    assert panel["targets"]
    for target in panel["targets"]:
        expression = replaced(target["expr"], VARIABLES)
        assert "$" not in expression
        found = prometheus.values(expression, is_instant=target.get("instant", False))
        assert any(map(math.isfinite, found)), f"{target['expr']}: {found}"


def test_prometheus_has_the_servers_numbers(traffic, server, prometheus):
    report = server.get("/api/v1/metrics").json()["requests"]
    outcomes = {
        outcome: prometheus.values(
            f'sum(qwenapi_requests_total{{outcome="{outcome}"}})', is_instant=True
        )
        for outcome in ("successful", "failed", "cancelled")
    }
    assert outcomes["successful"] == [report["successful"]]
    assert [outcomes["failed"][0] + outcomes["cancelled"][0]] == [report["failed"]]
    assert sum(one.ending == "cut" for one in traffic) == outcomes["cancelled"][0]


def test_the_dashboard_can_be_imported():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval", "__range"}
    assert used == known
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_promtool_accepts_the_shipped_files(tmp_path):
    for command, path in (("rules", RULES), ("config", CONFIG)):
        done = subprocess.run(["promtool", "check", command, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_have_the_numbers_of_the_settings():
    text, settings = RULES.read_text(), Settings()
    assert f"> {settings.alerts_error_rate:g} * sum" in text
    assert text.count(f">= {settings.alerts_min_requests}\n") == 2
    assert f"[5m]))) > {settings.alerts_ttft_p95:g}\n" in text
    assert f"qwenapi_kv_cache_usage_ratio >= {settings.alerts_kv_cache:g}\n" in text
    assert f"[10m])) >= {settings.alerts_engine_restarts}\n" in text


# Series by the minute, when the alert fires and when it is over.
ALERTS = {
    "QwenapiNotReady": ({"qwenapi_ready": "1 0 0 0 1 1 1"}, "3m", "5m"),
    "QwenapiErrorRate": (
        {
            'qwenapi_requests_total{outcome="failed"}': "0+2x5 10x20",
            'qwenapi_requests_total{outcome="successful"}': "0+30x25",
        },
        "5m",
        "15m",
    ),
    "QwenapiQueueNearFull": ({'qwenapi_alert{name="queue_near_full"}': "0 1 1 0 0"}, "2m", "3m"),
    "QwenapiSlowFirstToken": (
        {
            'qwenapi_time_to_first_token_seconds_bucket{le="10"}': "0+90x25",
            'qwenapi_time_to_first_token_seconds_bucket{le="20"}': "0+100x5 590+90x19",
            'qwenapi_time_to_first_token_seconds_bucket{le="+Inf"}': "0+100x5 590+90x19",
            "qwenapi_time_to_first_token_seconds_count": "0+100x5 590+90x19",
        },
        "5m",
        "15m",
    ),
    "QwenapiCacheFull": ({'qwenapi_kv_cache_usage_ratio{engine="0"}': "0 1 1 1 0.5"}, "3m", "4m"),
    "QwenapiEngineRestarts": (
        {'qwenapi_engine_restarts_total{engine="0"}': "0 1 2 3 4 4x25"},
        "5m",
        "20m",
    ),
}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_fires_and_clears(tmp_path, alert):
    series, when, over = ALERTS[alert]
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": when,
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}],
    }
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [firing, {"expr": firing["expr"], "eval_time": over}],
    }
    # JSON is YAML.
    (tmp_path / "case.yml").write_text(json.dumps({"rule_files": [str(RULES)], "tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried():
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == set(ALERTS)
