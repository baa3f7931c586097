"""Document 000: form posts, a raw text stream with a preface, conversations."""

import re

import pytest
import requests

from qwenapi.settings.table import etc_dir

FIRST = "用 Python 写一个最基础版的冒泡排序算法"
SECOND = "请把上面这段代码转换成 Java"
FORM = "application/x-www-form-urlencoded"
PREFACE = re.compile(r"conversation_id:([0-9a-f-]{36})\n---\n")


def stream(server, prompt, conversation_id=None):
    """Return the pieces of a turn as the document's own client receives them."""
    data = {"prompt": prompt} | ({"conversation_id": conversation_id} if conversation_id else {})
    url = server.url + "/v1/code/chat_stream"
    with requests.post(url, data=data, stream=True, timeout=60) as response:
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        return list(response.iter_content(chunk_size=None, decode_unicode=True))


def history(server, conversation_id):
    body = server.get(f"/v1/code/conversations/{conversation_id}").json()
    return [(m["role"], m["content"]) for m in body["messages"]]


def test_a_whole_answer_comes_in_the_documented_body(coder):
    answer = requests.post(coder.url + "/v1/code/generate", data={"prompt": FIRST}, timeout=60)
    assert answer.status_code == 200
    assert list(answer.json()) == ["status", "result"]
    assert answer.json()["status"] == "success" and answer.json()["result"]


def test_a_session_of_two_turns_knows_its_first(coder):
    pieces = stream(coder, FIRST)
    found = PREFACE.fullmatch(pieces[0])
    assert found, f"the preface is not one piece of its own: {pieces[:2]}"
    assert len(pieces) > 20, "the text did not come piece by piece"
    first = "".join(pieces[1:])
    second = "".join(stream(coder, SECOND, found[1]))
    assert "conversation_id:" not in second
    # the stub repeats its prompt, which holds the first turn if the server remembers it
    assert FIRST[:10] in second
    assert history(coder, found[1]) == [
        ("user", FIRST),
        ("assistant", first),
        ("user", SECOND),
        ("assistant", second),
    ]


def test_json_is_taken_too_and_fields_nobody_documents_are_named(coder):
    answer = coder.post("/v1/code/generate", {"prompt": "hi", "temperature": 0.1})
    assert answer.status_code == 200 and answer.headers["X-Ignored"] == "temperature"


@pytest.mark.parametrize("data", [{}, {"prompt": ""}, {"other": "x"}])
def test_a_missing_prompt_is_a_422_list(coder, data):
    answer = requests.post(
        coder.url + "/v1/code/chat_stream",
        data=data or b"",
        timeout=60,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 422
    (fault,) = answer.json()["detail"]
    assert (fault["type"], fault["loc"]) == ("missing", ["body", "prompt"])


def test_multipart_is_refused_and_an_unknown_conversation_is_404(coder):
    files = {"prompt": (None, "hi")}
    answer = requests.post(coder.url + "/v1/code/generate", files=files, timeout=60)
    assert answer.status_code == 415 and isinstance(answer.json()["detail"], str)
    for unknown in ("00000000-0000-4000-8000-000000000000", "../../etc/passwd", "x" * 200, "中文"):
        data = {"prompt": "hi", "conversation_id": unknown}
        answer = requests.post(coder.url + "/v1/code/chat_stream", data=data, timeout=60)
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith("会话不存在或已过期: ")


def test_a_prompt_that_does_not_fit_is_a_422_list(coder):
    data = {"prompt": "冒泡" * 9000}
    answer = requests.post(coder.url + "/v1/code/generate", data=data, timeout=60)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]


def test_a_turn_whose_caller_leaves_leaves_no_trace(coder):
    conversation_id = PREFACE.fullmatch(stream(coder, "begin")[0])[1]
    before = history(coder, conversation_id)
    data = {"prompt": "never mind", "conversation_id": conversation_id}
    url = coder.url + "/v1/code/chat_stream"
    with requests.post(url, data=data, stream=True, timeout=60) as response:
        next(response.iter_content(chunk_size=None))
    coder.wait_until_idle()
    stream(coder, "still here", conversation_id)
    assert history(coder, conversation_id)[: len(before)] == before
    assert "never mind" not in str(history(coder, conversation_id))


def test_a_deleted_conversation_is_gone(coder):
    conversation_id = PREFACE.fullmatch(stream(coder, "begin")[0])[1]
    url = f"{coder.url}/v1/code/conversations/{conversation_id}"
    assert requests.delete(url, timeout=10).status_code == 204
    assert requests.get(url, timeout=10).status_code == 404
    assert requests.delete(url, timeout=10).status_code == 404


def test_a_stream_whose_engine_fails_is_broken_off_and_its_turn_is_not_kept(failing):
    url = failing.url + "/v1/code/chat_stream"
    response = requests.post(url, data={"prompt": "x"}, stream=True, timeout=60)
    pieces = response.iter_content(chunk_size=None, decode_unicode=True)
    conversation_id = PREFACE.fullmatch(next(pieces))[1]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        next(pieces)
    kept = requests.get(f"{failing.url}/v1/code/conversations/{conversation_id}", timeout=10)
    assert kept.status_code == 404


def test_conversations_outlive_a_restart(tmp_path, start_server):
    flags = ("--stub", "--profile", "coder", "--default-max-tokens", "20")
    state = ("--state-dir", str(tmp_path / "kept"))
    first = start_server(*flags, *state)
    conversation_id = PREFACE.fullmatch(stream(first, FIRST)[0])[1]
    kept = history(first, conversation_id)
    first.stop()
    second = start_server(*flags, *state)
    assert history(second, conversation_id) == kept
    assert stream(second, SECOND, conversation_id)


def test_a_profile_may_repeat_the_preface_and_begin_anew_for_an_unknown_id(tmp_path, start_server):
    shipped = (etc_dir() / "profiles" / "coder.toml").read_text(encoding="utf-8")
    lenient = tmp_path / "lenient.toml"
    lenient.write_text(shipped + "repeats_preface = true\nnew_for_unknown = true\n", "utf-8")
    server = start_server("--stub", "--default-max-tokens", "5", "--profile", str(lenient))
    first = PREFACE.fullmatch(stream(server, "begin")[0])[1]
    assert PREFACE.fullmatch(stream(server, "again", first)[0])[1] == first
    unknown = "00000000-0000-4000-8000-000000000000"
    begun = PREFACE.fullmatch(stream(server, "hello", unknown)[0])[1]
    assert begun not in (first, unknown), "a caller never chooses an id"
    assert len(history(server, begun)) == 2


@pytest.mark.parametrize("path", ["/v1/code/generate", "/v1/code/chat_stream"])
@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "application/json"}, {"Content-Type": FORM}]
)
def test_a_post_without_a_body_lacks_its_prompt_as_fastapi_says_it(coder, path, headers):
    for options in ({}, {"data": iter(())}):
        answer = requests.post(coder.url + path, headers=headers, timeout=30, **options)
        assert answer.status_code == 422
        (fault,) = answer.json()["detail"]
        assert (fault["type"], fault["loc"]) == ("missing", ["body", "prompt"])


@pytest.mark.parametrize("type", ["text/plain", "multipart/form-data; boundary=x", "image/png"])
def test_a_body_of_another_type_is_415_even_an_empty_one(coder, type):
    for data in (b"", b"prompt=x"):
        headers = {"Content-Type": type}
        answer = requests.post(coder.url + "/v1/code/generate", data, headers=headers, timeout=30)
        assert answer.status_code == 415
