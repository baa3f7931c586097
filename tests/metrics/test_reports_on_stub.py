"""The reports of a running service: two HTTP processes, one engine, things going wrong."""

import os
import signal

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.e2e.test_http_on_stub import raw_request
from tests.running_server import RunningServer, wait_for

MESSAGES = [{"role": "user", "content": "央行宣布降息25个基点"}]
MAX_RUNNING, MAX_WAITING = 3, 10


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = RunningServer(
        tmp_path_factory.mktemp("reports") / "run", "--stub", "--stub-step-seconds", "0.01",
        "--profile", "news", "--api-server-count", "2", "--step-timeout", "2",
        "--alerts-engine-restarts", "1",
    )  # fmt: skip
    try:
        server.wait_until_ready()
        wait_for(lambda: scrape(server)["qwenapi_http_processes"] == 2)
        yield server
        assert server.stop() == 0
    finally:
        server.close()


def scrape(server):
    """Return all samples by name and labels, as Prometheus writes them."""
    answer = server.get("/metrics/prometheus")
    assert answer.status_code == 200
    return {
        sample.name + "".join(f" {key}={label}" for key, label in sorted(sample.labels.items())):
        sample.value
        for family in parse(answer.text)
        for sample in family.samples
    }  # fmt: skip


def report(server):
    answer = server.get("/api/v1/metrics")
    assert answer.status_code == 200
    return answer.json()


def alerts(server):
    return [alert["name"] for alert in report(server)["alerts"]]


def at_rest(server):
    """Wait until nothing is under way."""
    wait_for(lambda: server.get("/load").json() == {"server_load": 0})


def test_every_report_says_the_same_whichever_process_answers(server):
    for length in (5, 10, 15):
        assert server.chat("hello", max_tokens=length).status_code == 200
    with raw_request(server, {"messages": MESSAGES, "max_tokens": 500, "stream": True}) as sock:
        sock.recv(65536)
    at_rest(server)
    first = report(server)
    assert first["requests"]["successful"] == 3 and first["errors"]["by_type"] == {"cancelled": 1}
    assert first["tokens"]["total_output"] >= 30
    clocks = ("timestamp", "uptime")
    for _ in range(8):  # the two processes take turns as they like
        again, samples = report(server), scrape(server)
        assert again["requests"].pop("requests_per_second") > 0
        assert again["requests"].items() <= first["requests"].items()
        assert {k: v for k, v in again.items() if k not in (*clocks, "requests")}.items() <= (
            first.items()
        )
        assert samples["qwenapi_requests_total outcome=successful profile=news"] == 3
        assert samples["qwenapi_requests_total outcome=cancelled profile=news"] == 1
        total = samples["qwenapi_completion_tokens_total profile=news"]
        assert total == first["tokens"]["total_output"]
        assert samples["qwenapi_request_seconds_count profile=news"] == 3
        assert samples["vllm_ttft_p95"] == first["slo"]["ttft"]["p95"]
        assert (
            samples["vllm_decoding_throughput_mean"] == first["slo"]["throughput"]["decoding_mean"]
        )
    assert server.get("/stats").json()["tokens"] == first["tokens"]


def test_waiting_and_running_are_of_this_moment_and_a_long_queue_is_an_alert(server):
    asked = {"messages": MESSAGES, "max_tokens": 512}
    sockets = [raw_request(server, asked) for _ in range(MAX_RUNNING + 9)]
    try:
        wait_for(lambda: server.row()["waiting"] == 9)
        wait_for(lambda: report(server)["requests"]["waiting"] == 9)
        requests, samples = report(server)["requests"], scrape(server)
        assert (requests["running"], requests["peak_concurrent"]) == (3, 3)
        assert samples["vllm_num_running_requests"] == 3
        assert samples["vllm_num_waiting_requests"] == 9
        assert samples["qwenapi_max_waiting_requests"] == MAX_WAITING
        assert server.get("/load").json() == {"server_load": 12}
        wait_for(lambda: alerts(server) == ["queue_near_full"], 10)
        assert scrape(server)["qwenapi_alert name=queue_near_full"] == 1
    finally:
        for sock in sockets:
            sock.close()
    wait_for(lambda: not alerts(server), 10)
    assert scrape(server)["qwenapi_alert name=queue_near_full"] == 0


def test_a_hung_engine_shows_in_every_report_and_its_counters_go_on_after_it(server):
    assert server.chat("hello", max_tokens=5).status_code == 200
    at_rest(server)
    before = scrape(server)
    generated = "qwenapi_engine_generated_tokens_total engine=0"
    assert before["qwenapi_ready"] == before["qwenapi_engine_up engine=0"] == 1
    assert before[generated] > 0 and before["qwenapi_engine_restarts_total engine=0"] == 0
    health = server.get("/health").json()
    pid = server.row()["pid"]
    os.kill(pid, signal.SIGSTOP)

    wait_for(lambda: server.get("/readyz").status_code == 503, 5)
    reason = server.get("/readyz").json()["engines"]["0"]
    assert reason.startswith(("silent for", "down", "loading"))
    assert server.get("/livez").status_code == 200

    def is_back():
        return server.row()["pid"] != pid and server.get("/readyz").status_code == 200

    wait_for(is_back, 20)
    # Each of the two processes finds the new engine by itself, and they take turns as they like.
    for _ in range(8):
        wait_for(lambda: server.get("/health").json() == health)
        wait_for(lambda: report(server)["status"] == "healthy")
    wait_for(lambda: server.chat("again", max_tokens=7).status_code == 200)
    wait_for(lambda: alerts(server) == ["engine_restarts"], 10)
    after = scrape(server)
    assert after["qwenapi_alert name=engine_restarts"] == 1
    assert after["qwenapi_engine_restarts_total engine=0"] == 1
    assert after[generated] >= before[generated] + 7


def test_while_no_engine_is_up_the_reports_say_so(start_server):
    server = start_server("--stub", "--profile", "news", "--step-timeout", "60")
    os.kill(server.row()["pid"], signal.SIGSTOP)
    os.kill(server.process.pid, signal.SIGSTOP)  # nobody who would start it again
    try:
        os.kill(server.row()["pid"], signal.SIGKILL)
        wait_for(lambda: server.get("/readyz").status_code == 503)
        wait_for(lambda: server.get("/readyz").json()["engines"] == {"0": "down"})
        samples = scrape(server)
        assert samples["qwenapi_ready"] == samples["qwenapi_engine_up engine=0"] == 0
        assert report(server)["status"] == "unhealthy"
        assert server.get("/health").status_code == 503
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    wait_for(lambda: server.get("/readyz").status_code == 200, 20)
    assert report(server)["status"] == "healthy"
