"""Responses from outputs of models: streamed, whole, and as a client puts a stream together."""

import json
import random
from itertools import chain, count, islice

import pytest

from qwenapi.api.responses import render
from qwenapi.api.responses.paging import page
from qwenapi.errors import BadRequest
from qwenapi.http.paging import in_order
from qwenapi.text.output.events import CallStarted, Reasoning, Text, join_events
from qwenapi.text.output.output_parser import OutputParser
from tests.text.output.outputs import FORMATS, composed, cut, refused

DELTAS = {
    "response.output_text.delta": "message",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "function_call",
}


def new_items(**options):
    numbers = count()
    return render.OutputItems(lambda kind: f"{kind}-{next(numbers)}", **options)


def payloads(output, pieces):
    parser = OutputParser(output.call_format, output.tools, output.thinking)
    items = new_items()
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish(is_cut=output.is_cut)
    said = [*chain.from_iterable(map(items.push, events)), *items.finish(is_cut=output.is_cut)]
    return said, items.done, events


def put_together(said):
    """Return the items as a client makes them of deltas, and see to the order of events."""
    items, state = [], "closed"
    for payload in said:
        kind, place = payload["type"], payload["output_index"]
        if kind == "response.output_item.added":
            assert state == "closed" and place == len(items)
            items.append(json.loads(json.dumps(payload["item"])))
            assert items[-1]["status"] == "in_progress"
            state, text = "added", ""
            continue
        item = items[-1]
        assert place == len(items) - 1 and payload.get("item_id", item["id"]) == item["id"]
        is_call = item["type"] == "function_call"
        assert is_call or payload.get("content_index", 0) == 0
        if kind == "response.content_part.added":
            assert state == "added" and not is_call and payload["part"]["text"] == ""
            item["content"].append(dict(payload["part"]))
            state = "open"
        elif kind in DELTAS:
            assert item["type"] == DELTAS[kind] and state == ("added" if is_call else "open")
            text += payload["delta"]
        elif kind.removesuffix("done") + "delta" in DELTAS:
            assert payload["arguments" if is_call else "text"] == text
            state = "said"
            if is_call:
                item["arguments"] = text
                assert payload["name"] == item["name"]
            else:
                item["content"][0]["text"] = text
        elif kind == "response.content_part.done":
            assert state == "said" and payload["part"] == item["content"][0]
            state = "parted"
        else:
            assert kind == "response.output_item.done"
            assert state == ("said" if is_call else "parted")
            final = ("status", "encrypted_content")  # known only now
            item |= {key: payload["item"][key] for key in final if key in item}
            assert payload["item"] == item
            state = "closed"
    assert state == "closed"
    return items


def without_call_ids(items):
    for item in items:
        if item["type"] == "function_call":
            assert item.pop("call_id").startswith("call_")
    return items


def cuts(dice, text):
    while text:
        size = dice.randint(1, 12)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("call_format", FORMATS)
def test_a_streamed_response_is_the_whole_one_at_random_cuts(call_format):
    dice = random.Random(11)
    outputs = chain(
        islice(composed(call_format), 0, None, 7), refused(call_format), cut(call_format)
    )
    for output in outputs:
        _, whole, _ = payloads(output, [output.text])
        said, done, events = payloads(output, cuts(dice, output.text))
        assert put_together(said) == done
        items = without_call_ids(done)
        assert items == without_call_ids(whole), output.text
        message = join_events(events)
        texts = {
            kind: "".join(item["content"][0]["text"] for item in items if item["type"] == kind)
            for kind in ("message", "reasoning")
        }
        assert texts == {"message": message.content, "reasoning": message.reasoning}
        calls = [item for item in items if item["type"] == "function_call"]
        assert [(item["name"], item["arguments"]) for item in calls] == [
            (call.name, call.arguments) for call in message.calls
        ]
        assert [item["status"] == "completed" for item in calls] == [
            call.is_finished for call in message.calls
        ]


def finished(*events, is_cut=False, **options):
    items = new_items(**options)
    said = [*chain.from_iterable(map(items.push, events)), *items.finish(is_cut=is_cut)]
    assert put_together(said) == items.done
    return items.done


def test_what_was_cut_is_incomplete_and_what_stood_before_it_is_not():
    thought, text = finished(Reasoning("hm"), Text("a"), is_cut=True)
    assert (thought["status"], text["status"]) == ("completed", "incomplete")
    _, call = finished(Text("a"), CallStarted(0, "now"))
    assert (call["status"], call["arguments"]) == ("incomplete", "")


def test_an_answer_that_says_nothing_is_an_empty_message():
    (message,) = finished()
    assert message["content"] == [
        {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    ]
    assert [item["type"] for item in finished(Reasoning("hm"))] == ["reasoning", "message"]
    assert [item["type"] for item in finished(Reasoning("hm"), is_cut=True)] == ["reasoning"]


def test_a_thought_is_sealed_for_who_hands_it_back():
    (thought, _) = finished(Reasoning("a"), Reasoning("b"), Text("c"), seal=str.upper)
    assert thought["encrypted_content"] == "AB" and thought["summary"] == []
    (thought, _) = finished(Reasoning("a"), Text("c"))
    assert thought["encrypted_content"] is None


def test_log_probabilities_are_those_of_the_text_they_come_with():
    items = new_items()
    one, two = {"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}
    said = [*items.push(Text("a"), [one]), *items.push(Text("b"), [two])]
    assert [p["logprobs"] for p in said if "delta" in p] == [[one], [two]]
    said = list(items.finish(is_cut=False))
    assert said[0]["logprobs"] == said[1]["part"]["logprobs"] == [one, two]
    assert items.done[0]["content"][0]["logprobs"] == [one, two]


def test_how_a_response_ends():
    begun = render.response_body("resp_1", 5, "m", {"store": True})
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    usage = render.ResponseUsage(10, 5, 4, 3)
    whole = render.ended(begun, [{"id": "a"}], usage, is_cut=False, now=7)
    assert (whole["status"], whole["completed_at"]) == ("completed", 7)
    assert whole["incomplete_details"] is None and whole["output"] == [{"id": "a"}]
    cut_off = render.ended(begun, [], usage, is_cut=True, now=7)
    assert (cut_off["status"], cut_off["completed_at"]) == ("incomplete", None)
    assert cut_off["incomplete_details"] == {"reason": "max_output_tokens"}
    broken = render.failed(begun, "why")
    assert render.status_event(broken)["type"] == "response.failed"
    assert broken["error"] == {"code": "server_error", "message": "why"}
    assert usage.body == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 15,
    }


ITEMS = [{"id": str(number)} for number in range(25)]


@pytest.mark.parametrize(
    ("query", "first", "last", "has_more"),
    [
        ({}, "24", "5", True),
        ({"order": "asc"}, "0", "19", True),
        ({"order": "asc", "after": "19"}, "20", "24", False),
        ({"after": "5", "limit": "5"}, "4", "0", False),
        ({"limit": "24"}, "24", "1", True),
        ({"after": "0"}, None, None, False),
    ],
)
def test_pages_of_items(query, first, last, has_more):
    found = page(in_order(ITEMS), query)
    assert (found["first_id"], found["last_id"], found["has_more"]) == (first, last, has_more)
    assert len({item["id"] for item in found["data"]}) == len(found["data"])


@pytest.mark.parametrize(
    "query",
    [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"limit": "²"}, {"order": "up"},
     {"after": "nobody"}],
)  # fmt: skip
def test_a_page_that_is_asked_for_wrongly_is_refused_by_the_fields_name(query):
    (name,) = query
    with pytest.raises(BadRequest) as caught:
        page(in_order(ITEMS), query)
    assert caught.value.param == name
