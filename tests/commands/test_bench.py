"""`qwenapi bench --compare` and `--plot`: ratios that are right, and servers that are not."""

import json
import math
import random
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import pytest

from qwenapi import cli
from qwenapi.commands.bench import plot
from qwenapi.commands.bench.comparison import STUDENT, Comparison, Ratio, Round
from qwenapi.commands.bench.load import BenchResult, percentile
from qwenapi.commands.bench.plot import Line, Point
from qwenapi.commands.bench.tables import comparison_table

SVG = "{http://www.w3.org/2000/svg}"


def bench(*words):
    return cli.main(["bench", *map(str, words)])


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that answers with as many tokens as are asked for, but for what
    its own server says: `missing` tokens from its `good` requests on, and a name.
    """

    def do_GET(self):
        known = {"/v1/models": {"data": [{"id": self.server.model, "owned_by": "llamacpp"}]}}
        known["/props"] = {"build_info": "b42"}
        self.answer(
            200 if self.path in known else 404,
            json.dumps(known.get(self.path)).encode(),
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked.append((body, self.headers.get("Authorization")))
        count = body["max_tokens"]
        if len(server.asked) > server.good:
            count -= server.missing
        pieces = [{"choices": [{"text": "x"}]}] * count
        usage = {"choices": [], "usage": {"completion_tokens": count}}
        events = [json.dumps(piece) for piece in (*pieces, usage)] + ["[DONE]"]
        self.answer(200, b"".join(b"data: %s\n\n" % event.encode() for event in events))

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


class Listener(ThreadingHTTPServer):
    request_queue_size = 128  # all callers of a level come at once


@contextmanager
def serving(model="tiny", good=10**9, missing=0):
    with Listener(("127.0.0.1", 0), Server) as server:
        server.model, server.good, server.missing, server.asked = (
            model,
            good,
            missing,
            [],
        )
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server
        finally:
            server.shutdown()


def share_within(t, degrees):
    """Return how much of Student's distribution lies within t of 0: Simpson's rule."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    scale /= math.sqrt(degrees * math.pi)
    steps = 2000
    height = [
        (1 + (t * i / steps) ** 2 / degrees) ** (-(degrees + 1) / 2) for i in range(steps + 1)
    ]
    inner = 4 * sum(height[1:-1:2]) + 2 * sum(height[2:-1:2])
    return 2 * scale * (height[0] + inner + height[-1]) * t / steps / 3


def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed():
    values = [float(value) for value in range(20, 0, -1)]
    assert [percentile(values, share) for share in (0.01, 0.5, 0.95, 0.99)] == [1, 10, 19, 20]
    assert [percentile(some, 0.5) for some in ([], [7.0], [7.0, 9.0])] == [0, 7, 7]


def test_students_t_holds_95_of_100():
    for degrees, t in enumerate(STUDENT, 1):
        assert share_within(t, degrees) == pytest.approx(0.95, abs=1e-4), degrees


def test_a_ratio_is_the_geometric_mean_of_the_rounds():
    found = Ratio.of([(2, 1), (4, 1), (8, 1)])
    reach = 4.303 * math.log(2) / math.sqrt(3)
    assert found.value == pytest.approx(4)
    assert (found.low, found.high) == pytest.approx((4 * math.exp(-reach), 4 * math.exp(reach)))
    same = Ratio.of([(3, 2)] * 5)
    assert (same.low, same.value, same.high) == pytest.approx((1.5, 1.5, 1.5))


def test_nineteen_of_twenty_intervals_hold_the_truth():
    chosen = random.Random(5)

    def pair():
        drift = math.exp(chosen.gauss(0, 0.3))  # the machine's, which both of a round share
        a, b = (math.exp(chosen.gauss(0, 0.05)) for _ in "ab")
        return 1.2 * drift * a, drift * b

    ratios = [Ratio.of([pair() for _ in range(4)]) for _ in range(2000)]
    hits = sum(each.low <= 1.2 <= each.high for each in ratios)
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def result(rate, gap=10.0):
    return BenchResult(1, 2, 0, 1.0, 9, rate, {"p50": 100 / rate}, {"p95": gap}, {"p50": gap})


def comparison(*rates, gap=10.0):
    rounds = (Round(result(a, gap), result(b), i % 2 == 0, 0.5) for i, (a, b) in enumerate(rates))
    return Comparison(1, tuple(rounds))


def test_the_table_says_who_is_better_only_where_the_interval_does():
    columns = comparison_table([comparison((20, 10), (21, 10.1)), comparison((20, 10), (9, 10))])
    cells = {column.header: list(column.cells) for column in columns.columns}
    assert cells["better"] == ["A", "A", "–", "–", "–", "–"]
    assert cells["A/B"][:3] == ["2.039", "0.490", "1.000"]
    (none,) = comparison_table([comparison((1, 1), (1, 1), gap=0.0)]).columns[4:5]
    assert list(none.cells)[2] == "–"


def test_two_servers_are_compared_in_turns(start_server, tmp_path, capsys):
    a = start_server("--stub", "--stub-step-seconds", "0.02")
    b = start_server("--stub", "--stub-step-seconds", "0.06")
    files = {"--json": tmp_path / "out.json", "--plot": tmp_path / "out.svg"}
    flags = [word for pair in files.items() for word in pair]
    load = [
        "--concurrency",
        1,
        2,
        "--rounds",
        3,
        "--max-tokens",
        8,
        "--prompt-tokens",
        5,
    ]
    assert bench("--url", a.url, "--compare", b.url, *load, *flags) == 0
    said = capsys.readouterr()
    assert f"A: {a.url}, qwenapi 0.1.0, model qwen-demo" in said.out
    assert "3 rounds: A B, B A" in said.out and said.out.count("load average") == 2
    assert said.err.count(" of 3: A ") == 6
    report = json.loads(files["--json"].read_text())
    assert [each["concurrency"] for each in report["results"]] == [1, 2]
    for each in report["results"]:
        assert [one["is_a_first"] for one in each["rounds"]] == [True, False, True]
        assert all(one["load_average"] >= 0 for one in each["rounds"])
        figures = each["figures"]["tokens/s"]
        assert figures["ratio"]["value"] == pytest.approx(figures["a"] / figures["b"])
        assert 1 < figures["ratio"]["value"] < 4
    drawn = ElementTree.parse(files["--plot"]).getroot()
    labels = [text.text for text in drawn.iter(f"{SVG}text") if "label" in text.get("class", "")]
    assert sorted(labels) == ["1", "1", "2", "2"]


def test_no_prompt_is_sent_twice_not_even_where_both_are_one_server():
    with serving() as server:
        load = ("--rounds", 4, "--max-tokens", 3, "--concurrency", 1, 3)
        assert bench("--url", server.url, "--compare", server.url, *load) == 0
        assert bench("--url", server.url, "--max-tokens", 3) == 0
        prompts = [tuple(body["prompt"]) for body, _ in server.asked]
    assert len(prompts) == 2 * 3 + 4 * 2 * (2 + 6) + 2 + 16 + 64
    assert len({prompt[:16] for prompt in prompts}) == len(prompts)


def test_equal_seeds_ask_the_same():
    with serving() as server:
        for seed in (7, 7, 8):
            assert bench("--url", server.url, "--seed", seed, "--concurrency", 1) == 0
        prompts = [tuple(body["prompt"]) for body, _ in server.asked]
    assert prompts[:2] == prompts[2:4] and not set(prompts[4:]) & set(prompts[:4])


def test_each_server_gets_its_own_model_key_and_fields(monkeypatch):
    monkeypatch.setenv("QWENAPI_API_KEY", "")  # the command sets it, and servers started later ask
    with serving("one") as a, serving("two") as b:
        common = (
            "--rounds",
            2,
            "--concurrency",
            1,
            "--requests",
            1,
            "--endpoint",
            "chat",
        )
        words = ("--url", a.url, "--api-key", "secret", "--extra-body", '{"top_k": 3}')
        assert bench(*words, "--compare", b.url, *common) == 0
        more = (
            "--compare-model",
            "x",
            "--compare-api-key",
            "k",
            "--compare-extra-body",
            "{}",
        )
        assert bench(*words, "--compare", b.url, *more, *common) == 0
        keys = [key for server in (a, b) for _, key in server.asked]
        bodies = [body for server in (a, b) for body, _ in server.asked]
    assert keys == ["Bearer secret"] * 6 + [None] * 3 + ["Bearer k"] * 3
    assert [body["model"] for body in bodies] == ["one"] * 6 + ["two"] * 3 + ["x"] * 3
    assert [body.get("top_k") for body in bodies] == [3] * 9 + [None] * 3


def test_a_server_that_is_gone_is_named(capsys):
    with serving() as server:
        gone = "http://127.0.0.1:1"
        assert bench("--url", server.url, "--compare", gone) == 1
        assert bench("--url", gone, "--model", "m") == 1
    said = capsys.readouterr().err
    assert said.count(f"failed: {gone} does not say which models it serves") == 2


def test_a_server_that_refuses_is_named_with_its_words(stub_server, capsys):
    with serving() as server:
        words = (
            "--url",
            server.url,
            "--compare",
            stub_server.url,
            "--compare-model",
            "no-such",
        )
        assert bench(*words, "--concurrency", 1) == 1
    said = capsys.readouterr().err
    assert f"failed: {stub_server.url} failed 1 of 1 requests at 1 stream" in said
    assert "status 404" in said and "no-such" in said


def test_other_numbers_of_tokens_end_it_and_what_is_known_is_shown(tmp_path, capsys):
    file = tmp_path / "out.json"
    with serving() as a, serving(good=1 + 2 * 2 + 1, missing=2) as b:
        words = ("--url", a.url, "--compare", b.url, "--rounds", 2, "--requests", 2)
        assert bench(*words, "--concurrency", 1, 1, "--max-tokens", 9, "--json", file) == 1
    said = capsys.readouterr()
    assert f"{b.url} failed 1 of 2 requests at 1 stream: 7 tokens came where 9 were" in said.err
    assert said.out.count("TTFT p50") == 1
    assert len(json.loads(file.read_text())["results"]) == 1


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--rounds", "3"], "--rounds is for two servers; add --compare URL"),
        (["--compare-model", "x"], "--compare-model is for two servers"),
        (["--compare", "http://x", "--rounds", "1"], "--rounds 1 gives no interval"),
        (["--engine", "--compare", "http://x"], "--compare asks a server over HTTP"),
        (["--engine", "--plot", "x.svg"], "--plot asks a server over HTTP"),
    ],
)
def test_flags_that_mean_nothing_here_are_refused(words, answer, capsys):
    assert bench(*words) == 78
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "{", "x"])
def test_fields_must_be_an_object(text, capsys):
    with pytest.raises(SystemExit):
        bench("--extra-body", text)
    assert "is no JSON" in capsys.readouterr().err


def test_one_server_is_plotted_too(tmp_path):
    file = tmp_path / "out.svg"
    with serving("a <model> & more") as server:
        assert bench("--url", server.url, "--concurrency", 1, 2, "--plot", file) == 0
    drawn = ElementTree.parse(file).getroot()
    words = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "llamacpp b42: a <model> & more" in words
    assert plot.ALONG_X in words and plot.ALONG_Y in words
    assert len(list(drawn.iter(f"{SVG}circle"))) == 1 + 2


LEVELS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHAPES = {
    "apart": [[(30, 32), (55, 131), (180, 166)], [(28, 35), (52, 140), (140, 207)]],
    "the same": [[(5, 190), (5.3, 1480), (5.9, 5200)]] * 2,
    "one point": [[(40, 190)]],
    "crowded": [
        [(6.8 + i**2 / 3, 146 * 1.7**i) for i in range(9)],
        [(6.4 + i**2 / 2.9, 150 * 1.68**i) for i in range(9)],
    ],
    "no second token": [[(0, 10), (0, 20)]],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_words_of_a_plot_lie_on_others_and_ends_are_labelled(shape):
    lines = [
        Line(f"server {i}", tuple(Point(LEVELS[k], *at) for k, at in enumerate(points)))
        for i, points in enumerate(SHAPES[shape])
    ]
    drawn = ElementTree.fromstring(plot.draw(lines, "conditions"))
    texts = list(drawn.iter(f"{SVG}text"))
    boxes = [box(text) for text in texts]
    for i, one in enumerate(boxes):
        assert one[0] >= 0 and one[2] <= plot.WIDTH and one[1] >= 0 and one[3] <= plot.HEIGHT
        for other in boxes[:i]:
            apart = one[0] >= other[2] or other[0] >= one[2]
            assert apart or one[1] >= other[3] or other[1] >= one[3], (one, other)
    for i, line in enumerate(lines):
        labels = [t.text for t in texts if t.get("class", "").endswith(f"middle {'ab'[i]}")]
        assert {str(line.points[k].streams) for k in (0, -1)} <= set(labels)


def box(text):
    """Return where a text about is: left, top, right, bottom."""
    x, y = float(text.get("x")), float(text.get("y"))
    width = 6.6 * len(text.text) * (1.25 if text.get("class") == "title" else 1)
    names = text.get("class", "")
    left = x - width * (1 if re.search(r"\bend\b", names) else 0.5 if "middle" in names else 0)
    return left, y - 10, left + width, y + 2
