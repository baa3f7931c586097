"""Messages from outputs of models: streamed, whole, and as a client puts a stream together."""

import json
import random
from itertools import chain, islice

import jiter
import orjson
import pytest

from qwenapi.api.anthropic import render
from qwenapi.text.output.events import CallFinished, CallStarted, Reasoning, Text, join_events
from qwenapi.text.output.output_parser import OutputParser
from tests.text.output.outputs import FORMATS, composed, cut, hermes, refused

DELTAS = {
    "text": {"text_delta": "text"},
    "tool_use": {"input_json_delta": "partial_json"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
}


def payloads(output, pieces, **options):
    parser = OutputParser(output.call_format, output.tools, output.thinking)
    blocks = render.ContentBlocks(**options)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish(is_cut=output.is_cut)
    return [*chain.from_iterable(map(blocks.push, events)), *blocks.finish()], events


def put_together(said):
    """Return the blocks as a client makes them, and see to the order of events."""
    content, is_open = [], False
    for payload in said:
        match payload["type"]:
            case "content_block_start":
                assert not is_open and payload["index"] == len(content)
                content.append(dict(payload["content_block"]))
                is_open, text = True, ""
            case "content_block_delta":
                assert is_open and payload["index"] == len(content) - 1
                key = DELTAS[content[-1]["type"]][payload["delta"]["type"]]
                if key == "partial_json":
                    text += payload["delta"][key]
                    content[-1]["input"] = jiter.from_json(text.encode(), partial_mode=True)
                else:
                    content[-1][key] += payload["delta"][key]
            case "content_block_stop":
                assert is_open and payload["index"] == len(content) - 1
                is_open = False
            case other:
                raise AssertionError(other)
    assert not is_open
    return content


def without_ids(content):
    blocks = json.loads(orjson.dumps(content))
    for block in blocks:
        if block["type"] == "tool_use":
            assert block.pop("id").startswith("toolu_")
    return blocks


def cuts(dice, text):
    while text:
        size = dice.randint(1, 12)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("call_format", FORMATS)
def test_a_streamed_message_is_the_whole_one_at_random_cuts(call_format):
    dice = random.Random(11)
    outputs = chain(
        islice(composed(call_format), 0, None, 7), refused(call_format), cut(call_format)
    )
    for output in outputs:
        whole, _ = payloads(output, [output.text])
        streamed, events = payloads(output, cuts(dice, output.text))
        content = without_ids(put_together(streamed))
        assert content == without_ids(render.fold_content(whole)), output.text
        message = join_events(events)
        said = {kind: [b for b in content if b["type"] == kind] for kind in DELTAS}
        assert "".join(block["text"] for block in said["text"]) == message.content
        assert "".join(block["thinking"] for block in said["thinking"]) == message.reasoning
        assert all(block["signature"] for block in said["thinking"])
        assert [block["name"] for block in said["tool_use"]] == [c.name for c in message.calls]
        for block, call in zip(said["tool_use"], message.calls, strict=True):
            if call.is_finished:
                assert block["input"] == json.loads(call.arguments)


def test_arguments_that_are_too_large_for_64_bits_stay_as_they_are():
    text = '{"n": 123456789012345678901234567890}'
    parser = OutputParser("hermes", {"now": {}})
    blocks = render.ContentBlocks()
    said = list(chain.from_iterable(map(blocks.push, parser.push(hermes("now", text)))))
    assert text.encode() in orjson.dumps(render.fold_content(said))


def test_a_thought_that_is_not_shown_is_its_signature_alone():
    events = [Reasoning("a"), Reasoning("b"), Text("c")]
    shown, hidden = render.ContentBlocks(), render.ContentBlocks(shows_thinking=False)
    (thought, text), (other, same) = (
        render.fold_content([*chain.from_iterable(map(blocks.push, events)), *blocks.finish()])
        for blocks in (shown, hidden)
    )
    assert thought["thinking"] == "ab" and other["thinking"] == ""
    assert thought["signature"] == other["signature"] != ""
    assert text == same == {"type": "text", "text": "c"}


def test_every_block_has_its_own_index_and_every_call_its_own_id():
    blocks = render.ContentBlocks()
    events = [CallStarted(0, "now"), CallFinished(0), CallStarted(1, "now"), CallFinished(1)]
    content = put_together(chain.from_iterable(map(blocks.push, events)))
    assert len({block["id"] for block in content}) == 2
    assert [block["input"] for block in content] == [{}, {}]


@pytest.mark.parametrize(
    ("finish_reason", "stop_string", "reason", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "END", "stop_sequence", "END"),
        ("length", None, "max_tokens", None),
        ("tool_calls", None, "tool_use", None),
        ("tool_calls", "END", "tool_use", None),
    ],
)
def test_why_a_message_ended(finish_reason, stop_string, reason, sequence):
    told = render.stop(finish_reason, stop_string)
    assert told == {"stop_reason": reason, "stop_sequence": sequence}


def test_what_the_prefix_cache_had_is_no_input():
    assert render.MessageUsage(100, 7, 64, 3).body == {
        "input_tokens": 36,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 64,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    assert "output_tokens_details" not in render.MessageUsage(1, 1).body
