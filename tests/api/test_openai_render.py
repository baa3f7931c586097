import json
import math

import pytest

from qwenapi.api.openai.logprobs import TextOffsets, chat_logprobs, completion_logprobs
from qwenapi.api.openai.render import (
    DONE,
    ChatChunks,
    Chunks,
    CompletionChunks,
    MessageChoice,
    Reply,
    ReplyChoice,
    TokenUsage,
    chat_body,
    chat_id,
    completion_body,
    completion_id,
    error_event,
    model_card,
    model_list,
)
from qwenapi.errors import EngineFailed, Wording, render_openai
from workers.wire.protocol import TokenLogprob

HEX = "0123456789abcdef0123456789abcdef"
HI = {"role": "assistant", "content": "hi"}
REPLY = Reply(chat_id(HEX), 1700000000, "MyCoder")
HEAD = (
    b'data: {"id":"chatcmpl-' + HEX.encode() + b'","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"MyCoder","choices":['
)
PIECES = {1: b"a", 2: "你".encode()[:2], 3: "你".encode()[2:], 4: "é".encode(), 5: b" b"}
ENTRIES = (
    TokenLogprob(1, -0.5, (1, 2), (-0.5, -1.5)),
    TokenLogprob(2, -math.inf, (1, 4), (-0.1, -0.2)),
    TokenLogprob(3, -0.25),
    TokenLogprob(5, 0.0),
)


def decode_003(stream: bytes) -> list[str]:
    """What the decoder printed in document 003 yields, with its faults."""
    buffer, out = "", []
    for i in range(0, len(stream.decode()), 7):
        buffer += stream.decode()[i : i + 7]
        *chunks, buffer = buffer.split("\ndata: ")
        for chunk in chunks:
            try:
                text = json.loads(chunk.strip())["choices"][0]["delta"].get("content")
            except (ValueError, KeyError, IndexError):
                continue
            if text:
                out.append(text)
    return out


def test_a_content_event_is_the_documented_line() -> None:
    assert (
        ChatChunks(REPLY).content(0, "阶")
        == HEAD
        + (
            '{"index":0,"delta":{"content":"阶"},"logprobs":null,"finish_reason":null}]}\n\n'
        ).encode()
    )


def test_the_events_of_a_chat() -> None:
    chunks = ChatChunks(REPLY)
    assert chunks.opening(1) == HEAD + (
        b'{"index":1,"delta":{"role":"assistant","content":""},'
        b'"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunks.heartbeat() == HEAD + (
        b'{"index":0,"delta":{},"logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunks.finish(0, "stop") == HEAD + (
        b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    )
    assert DONE == b"data: [DONE]\n\n"


def test_usage_is_an_event_of_its_own_and_null_in_the_others() -> None:
    chunks = ChatChunks(REPLY, include_usage=True)
    for event in (chunks.opening(0), chunks.content(0, "x"), chunks.finish(0, "length")):
        assert event.endswith(b'}],"usage":null}\n\n')
    assert chunks.usage(TokenUsage(3, 4, 2)) == HEAD + (
        b'],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,'
        b'"prompt_tokens_details":{"cached_tokens":2}}}\n\n'
    )


def test_the_events_of_a_completion() -> None:
    chunks = CompletionChunks(Reply(completion_id(HEX), 1, "m"))
    head = (
        b'data: {"id":"cmpl-' + HEX.encode() + b'","object":"text_completion",'
        b'"created":1,"model":"m","choices":['
    )
    assert chunks.opening(0) == b""
    assert chunks.content(2, "x") == head + (
        b'{"index":2,"text":"x","logprobs":null,"finish_reason":null}]}\n\n'
    )
    assert chunks.finish(0, "stop") == head + (
        b'{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}]}\n\n'
    )


@pytest.mark.parametrize(
    "text", ["", '"\\', "\n\r\u2028\u2029", "\0\x7f", "😀", "data: [DONE]\n\n"]
)
@pytest.mark.parametrize("kind", [ChatChunks, CompletionChunks])
def test_any_text_stays_one_event_on_one_line(kind: type[Chunks], text: str) -> None:
    event = kind(Reply("i", 1, 'm"\n')).content(0, text, {"content": []})
    assert event.startswith(b"data: {") and event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2 and b"\r" not in event
    choice = json.loads(event[6:])["choices"][0]
    assert choice.get("delta", {}).get("content", choice.get("text")) == text
    assert choice["logprobs"] == {"content": []}


def test_document_003s_decoder_loses_nothing() -> None:
    chunks = ChatChunks(REPLY, include_usage=True)
    words = ["阶", "乘", "\ndata: x", "\n\n", "!"]
    events = [chunks.opening(0), chunks.heartbeat()]
    for word in words:
        events += [chunks.content(0, word), chunks.heartbeat()]
    events += [chunks.finish(0, "stop"), chunks.usage(TokenUsage(1, 1)), DONE]
    assert decode_003(b"".join(events)) == words


def test_a_failure_is_an_event() -> None:
    wording = Wording(request_id="r1")
    event = error_event(render_openai(EngineFailed(), wording).body)
    assert event.startswith(b'data: {"error":{"message":"The engine failed') and b"r1" in event
    assert event.endswith(b'"code":"engine_failed"}}\n\n')


def test_a_whole_chat_completion() -> None:
    body = chat_body(REPLY, [MessageChoice(0, HI, "stop")], TokenUsage(5, 2))
    assert list(body) == ["id", "object", "created", "model", "choices", "usage"]
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["total_tokens"] == 7


def test_a_whole_completion() -> None:
    body = completion_body(REPLY, [ReplyChoice(0, "x", "length", {"tokens": []})], TokenUsage(1, 1))
    assert body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "text": "x", "logprobs": {"tokens": []}, "finish_reason": "length"}
    ]


def test_logprobs_of_a_chat_keep_the_bytes_of_half_characters() -> None:
    content = chat_logprobs(ENTRIES[:2], PIECES.__getitem__)["content"]
    assert content[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [0xE4, 0xBD]},
        ],
    }
    assert content[1]["logprob"] == -9999.0


def test_logprobs_of_a_completion_count_characters() -> None:
    offsets = TextOffsets(PIECES.__getitem__)
    assert completion_logprobs(ENTRIES, PIECES.__getitem__, offsets) == {
        "tokens": ["a", "bytes:\\xe4\\xbd", "bytes:\\xa0", " b"],
        "token_logprobs": [-0.5, -9999.0, -0.25, 0.0],
        "top_logprobs": [
            {"a": -0.5, "bytes:\\xe4\\xbd": -1.5},
            {"a": -0.1, "é": -0.2, "bytes:\\xe4\\xbd": -9999.0},
            {"bytes:\\xa0": -0.25},
            {" b": 0.0},
        ],
        "text_offset": [0, 1, 2, 2],
    }
    (later,) = completion_logprobs(ENTRIES[:1], PIECES.__getitem__, offsets)["text_offset"]
    assert later == 4


@pytest.mark.parametrize(
    ("ids", "skipped", "offsets"),
    [
        ([9, 9, 9], {9}, [0, 0, 0]),
        ([9, 9, 9], set(), [0, 12, 24]),
        ([1, 9, 4, 9, 5], {9}, [0, 1, 1, 2, 2]),
        ([2, 9, 3, 1], {9}, [0, 1, 1, 1]),
        ([3, 3, 1], set(), [0, 1, 2]),  # halves that begin no character: U+FFFD each
    ],
)
def test_an_offset_is_a_place_in_the_text_that_is_shown(
    ids: list[int], skipped: set[int], offsets: list[int]
) -> None:
    pieces = PIECES | {9: b"<|im_start|>"}
    places = TextOffsets(pieces.__getitem__, skipped)
    assert [places.next(id_) for id_ in ids] == offsets


def test_openais_own_keys_are_there_with_a_fingerprint_and_only_then() -> None:
    reply = Reply(chat_id(HEX), 1, "m", "fp_0123456789")
    usage = TokenUsage(5, 2)
    body = chat_body(reply, [MessageChoice(0, HI, "stop")], usage)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "hi", "refusal": None}
    assert body["system_fingerprint"] == "fp_0123456789"
    whole = completion_body(reply, [ReplyChoice(0, "hi", "stop")], usage)
    assert whole["system_fingerprint"] == "fp_0123456789" and "refusal" not in str(whole)
    event = json.loads(ChatChunks(reply).content(0, "x")[6:])
    assert event["system_fingerprint"] == "fp_0123456789"
    logprobs = chat_logprobs(ENTRIES[:1], PIECES.__getitem__, has_refusal=True)
    assert logprobs["refusal"] is None
    assert "refusal" not in chat_logprobs(ENTRIES[:1], PIECES.__getitem__)
    assert "fingerprint" not in str(chat_body(REPLY, [], usage))


def test_usage_so_far_is_on_every_event_that_follows() -> None:
    chunks = ChatChunks(REPLY, include_usage=True)
    for num_tokens in (0, 1, 7):
        chunks.show_usage(TokenUsage(3, num_tokens))
        for event in (chunks.content(0, "x"), chunks.heartbeat(), chunks.finish(0, "stop")):
            assert json.loads(event[6:])["usage"]["completion_tokens"] == num_tokens


def test_the_list_of_models() -> None:
    card = model_card("Qwen3", root="/m/Qwen3", created=1, max_model_len=4096)
    assert model_list([card]) == {
        "object": "list",
        "data": [
            {
                "id": "Qwen3",
                "object": "model",
                "created": 1,
                "owned_by": "qwenapi",
                "root": "/m/Qwen3",
                "parent": None,
                "max_model_len": 4096,
            }
        ],
    }
