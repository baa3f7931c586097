import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from gunicorn.http.errors import ChunkMissingTerminator, InvalidChunkSize, NoMoreData
from marshmallow import fields

from qwenapi.errors import ApiError, BadRequest, Wording, render_openai
from qwenapi.http.body import PIECE_BYTES, accepts, parse_json
from qwenapi.http.fields import Neutral, StrictBoolean, StrictFloat, StrictInteger, StrictString
from qwenapi.http.responses import ignored_header
from qwenapi.http.schemas import (
    RequestSchema,
    StrictSchema,
    ignored_fields,
    load_request,
    refuse_unknown,
)

LIMIT = 1000


@dataclass(frozen=True)
class Value:
    count: int
    share: float | None = None
    flag: bool = False


class Inner(StrictSchema):
    deep = StrictInteger(0, 1)
    unsupported = {"deeper": Neutral(feature="depth")}


class ValueSchema(RequestSchema):
    value_class = Value
    unsupported = {"later": Neutral(False, 0, [], feature="more")}
    without_effect = frozenset({"user"})
    count = StrictInteger(1, 8, required=True)
    share = StrictFloat(0, 1)
    above = StrictFloat(above=0, high=2)
    flag = StrictBoolean()
    label = StrictString(4)
    inner = fields.Nested(Inner)


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    app = Flask(__name__)

    @app.post("/")
    @accepts(ValueSchema, max_bytes=LIMIT)
    def view(value: Value) -> dict[str, Any]:
        return {"count": value.count, "share": value.share}

    @app.errorhandler(ApiError)
    def refuse(error: ApiError) -> tuple[dict[str, Any], int]:
        return render_openai(error, Wording(request_id="r")).body, error.status

    with app.test_client() as test_client:
        yield test_client


def test_a_view_is_given_the_checked_value(client: FlaskClient) -> None:
    reply = client.post("/", json={"count": 2, "share": 1, "label": None})
    assert reply.json == {"count": 2, "share": 1.0}


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/json;charset=GBK",
     "APPLICATION/JSON", "application/vnd.api+json"],
)  # fmt: skip
def test_json_by_any_of_its_names_is_read(client: FlaskClient, content_type: str) -> None:
    assert client.post("/", data=b'{"count":1}', content_type=content_type).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "text/json", "application/x-www-form-urlencoded",
     "multipart/form-data; boundary=x", "application/jsonp", "image/svg+json"],
)  # fmt: skip
def test_other_content_is_415(client: FlaskClient, content_type: str | None) -> None:
    assert client.post("/", data=b'{"count":1}', content_type=content_type).status_code == 415


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br", 415), ("identity", 200), ("Identity", 200)]
)
def test_only_identity_is_decoded(client: FlaskClient, encoding: str, status: int) -> None:
    headers = {"Content-Encoding": encoding}
    reply = client.post("/", data=b'{"count":1}', headers=headers, content_type="application/json")
    assert reply.status_code == status


def post_chunked(client: FlaskClient, source: Any, coding: str = "chunked") -> Any:
    environ = {"wsgi.input": source, "wsgi.input_terminated": True, "CONTENT_LENGTH": None}
    environ["HTTP_TRANSFER_ENCODING"] = coding
    return client.post("/", content_type="application/json", environ_overrides=environ)


def test_a_body_in_chunks_is_read_to_its_end(client: FlaskClient) -> None:
    raw = b'{"count":1,' + b" " * (LIMIT - 22) + b'"share":1}'
    reply = post_chunked(client, BytesIO(raw))
    assert reply.json == {"count": 1, "share": 1.0}
    assert post_chunked(client, BytesIO(b"")).status_code == 400


def test_a_body_in_chunks_over_the_limit_is_413_and_not_read_on(client: FlaskClient) -> None:
    class Endless:
        num_read = 0

        def read(self, size: int) -> bytes:
            self.num_read += size
            return b" " * size

    source = Endless()
    assert post_chunked(client, source).status_code == 413
    assert source.num_read < LIMIT + 2 * PIECE_BYTES
    assert post_chunked(client, BytesIO(b'{"count":1' + b" " * LIMIT + b"}")).status_code == 413


@pytest.mark.parametrize(
    "fault", [InvalidChunkSize(b"zz"), ChunkMissingTerminator(b"xx"), NoMoreData(), TimeoutError()]
)
def test_chunks_that_are_none_or_end_early_are_400(client: FlaskClient, fault: Exception) -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise fault

    reply = post_chunked(client, Broken())
    assert reply.status_code == 400 and "body" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    "coding", ["gzip", "gzip, chunked", "identity, chunked", "chunked, chunked"]
)
def test_other_transfer_codings_are_not_read(client: FlaskClient, coding: str) -> None:
    assert post_chunked(client, BytesIO(b'{"count":1}'), coding).status_code == 415


def test_no_body_is_no_json(client: FlaskClient) -> None:
    assert client.post("/", content_type="application/json").status_code == 400


def test_a_body_over_the_limit_is_413_and_never_read(client: FlaskClient) -> None:
    class Untouchable(BytesIO):
        def read(self, *_: Any) -> bytes:
            raise AssertionError("the body was read")

    environ = {"wsgi.input": Untouchable(), "CONTENT_LENGTH": str(LIMIT + 1)}
    reply = client.post("/", content_type="application/json", environ_overrides=environ)
    assert reply.status_code == 413


def test_a_body_shorter_than_it_says_is_400(client: FlaskClient) -> None:
    environ = {"wsgi.input": BytesIO(b'{"count":1}'), "CONTENT_LENGTH": "12"}
    reply = client.post("/", content_type="application/json", environ_overrides=environ)
    assert reply.status_code == 400
    assert "Content-Length" in reply.json["error"]["message"]


@pytest.mark.parametrize("raw", [b"[]", b'{"count":NaN}', b"\xff", b'{"count":1,"count":2}'])
def test_what_is_not_strict_json_is_400(client: FlaskClient, raw: bytes) -> None:
    reply = client.post("/", data=raw, content_type="application/json")
    assert reply.status_code == 400 and reply.json["error"]["param"] is None
    with pytest.raises(BadRequest):
        parse_json(raw)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "count", "'count' is required."),
        ({"count": None}, "count", "'count' is required."),
        ({"count": 9}, "count", "'count' must be an integer from 1 to 8."),
        ({"count": True}, "count", "'count' must be an integer from 1 to 8."),
        ({"count": 1.0}, "count", "'count' must be an integer from 1 to 8."),
        ({"count": 1, "share": "1"}, "share", "'share' must be a number from 0 to 1."),
        ({"count": 1, "above": 0}, "above", "'above' must be a number above 0 and up to 2."),
        ({"count": 1, "flag": 1}, "flag", "'flag' must be true or false."),
        ({"count": 1, "flag": "true"}, "flag", "'flag' must be true or false."),
        ({"count": 1, "label": "12345"}, "label",
         "'label' must be a string of at most 4 characters."),
        ({"count": 1, "label": 1}, "label", "'label' must be a string of at most 4 characters."),
        ({"count": 1, "later": True}, "later",
         "'later' asks for more, which this server does not support."),
        ({"count": 1, "later": 0.5}, "later",
         "'later' asks for more, which this server does not support."),
        ({"count": 1, "inner": {"deeper": 1}}, "inner.deeper",
         "'inner.deeper' asks for depth, which this server does not support."),
        ({"count": 1, "inner": {"deep": 2}}, "inner.deep",
         "'inner.deep' must be an integer from 0 to 1."),
        ({"count": 1, "inner": []}, "inner", "'inner' must be an object."),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_the_rule(
    body: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        load_request(ValueSchema(), body)
    assert (caught.value.param, caught.value.message) == (param, message)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"flag": 1, "share": 2, "x": 1}, "flag"),
        ({"flag": 1, "later": 1}, "later"),
        ({"flag": 1, "share": 2}, "flag"),
        ({"share": 2, "flag": 1}, "share"),
    ],
)
def test_of_several_faults_an_unsupported_field_or_else_the_first_is_named(
    body: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        load_request(ValueSchema(), body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        ({"count": 1}, []),
        ({"zzz": 1, "count": 1, "aaa": 0}, ["zzz", "aaa"]),
        ({"count": 1, "zzz": None, "user": "u", "later": []}, ["user"]),
        ({"count": 1, "inner": {"dep": 2, "deep": 1, "none": None}}, ["inner.dep"]),
        ({"count": 1, "inner": {"deeper": None}}, []),
    ],
)
def test_what_no_schema_knows_is_left_out_and_its_place_told(
    body: dict[str, Any], ignored: list[str]
) -> None:
    assert load_request(ValueSchema(), body) == Value(1)
    assert list(ignored_fields(ValueSchema(), body)) == ignored


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"count": 1, "coun": 1}, "coun",
         "'coun' is not a field of this request. Did you mean 'count'?"),
        ({"count": 1, "cow": 1}, "cow", "'cow' is not a field of this request."),
        ({"b": 1, "a": 1}, "b", "'b' is not a field of this request."),
        ({"user": 1, "inner": {"dep": 2}}, "inner.dep",
         "'inner.dep' is not a field of this request."),
    ],
)  # fmt: skip
def test_or_it_is_refused_by_its_place(body: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        refuse_unknown(ValueSchema(), body)
    assert (caught.value.param, caught.value.message) == (param, message)


def test_nothing_is_refused_that_is_null_or_without_effect_or_neutral() -> None:
    refuse_unknown(ValueSchema(), {"count": 1, "zzz": None, "user": "u", "later": False})


def test_a_long_field_name_is_cut_in_the_answer() -> None:
    with pytest.raises(BadRequest) as caught:
        refuse_unknown(ValueSchema(), {"count": 1, "x" * 1_000_000: 1})
    assert len(caught.value.message) < 200 and len(caught.value.param or "") < 100


def test_a_body_of_unknown_fields_is_read_fast() -> None:
    body = {f"field{i}": i for i in range(99_000)} | {"count": 1}
    started = time.process_time()
    assert load_request(ValueSchema(), body) == Value(1)
    assert len(list(ignored_fields(ValueSchema(), body))) == 99_000
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize(
    ("paths", "header"),
    [
        ([], {}),
        (["a", "messages[0].id"], {"X-Ignored": "a, messages[0].id"}),
        (["a b", "a\r\nSet-Cookie: x", "", "a,b", "é", "x" * 129], {}),
        (["x" * 100] * 20, {"X-Ignored": ", ".join(["x" * 100] * 10)}),
    ],
)
def test_the_header_names_places_that_fit_and_may_stand_in_it(
    paths: list[str], header: dict[str, str]
) -> None:
    assert ignored_header(paths) == header
    assert len(header.get("X-Ignored", "")) <= 1024


def test_null_inside_an_object_is_absent_too() -> None:
    assert load_request(ValueSchema(), {"count": 1, "inner": {"deep": None}}) == Value(1)


@pytest.mark.parametrize("neutral", [False, 0, 0.0, [], None])
def test_neutral_values_pass_and_are_dropped(neutral: Any) -> None:
    assert load_request(ValueSchema(), {"count": 1, "later": neutral}) == Value(1)
