import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from marshmallow import fields

from qwenapi.errors import ApiError, BadRequest, Wording, render_openai
from qwenapi.http.body import accepts, parse_json
from qwenapi.http.fields import Neutral, StrictBoolean, StrictFloat, StrictInteger, StrictString
from qwenapi.http.schemas import RequestSchema, StrictSchema, load_request

LIMIT = 1000


@dataclass(frozen=True)
class Value:
    count: int
    share: float | None = None
    flag: bool = False


class Inner(StrictSchema):
    deep = StrictInteger(0, 1)


class ValueSchema(RequestSchema):
    value_class = Value
    count = StrictInteger(1, 8, required=True)
    share = StrictFloat(0, 1)
    above = StrictFloat(above=0, high=2)
    flag = StrictBoolean()
    label = StrictString(4)
    later = Neutral(False, 0, feature="more")
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


def test_a_body_without_length_is_411(client: FlaskClient) -> None:
    environ = {"wsgi.input": BytesIO(b'{"count":1}'), "wsgi.input_terminated": True}
    reply = client.post("/", content_type="application/json", environ_overrides=environ)
    assert reply.status_code in (400, 411)
    chunked = environ | {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": None}
    reply = client.post("/", content_type="application/json", environ_overrides=chunked)
    assert reply.status_code == 411


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
        ({"count": 1, "later": 0.0}, "later",
         "'later' asks for more, which this server does not support."),
        ({"count": 1, "inner": {"deep": 2}}, "inner.deep",
         "'inner.deep' must be an integer from 0 to 1."),
        ({"count": 1, "inner": {"dep": 2}}, "inner.dep",
         "'inner.dep' is not a field of this request."),
        ({"count": 1, "inner": []}, "inner", "'inner' must be an object."),
        ({"count": 1, "coun": 1}, "coun",
         "'coun' is not a field of this request. Did you mean 'count'?"),
        ({"count": 1, "zzz": None}, "zzz", "'zzz' is not a field of this request."),
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
        ({"b": 1, "a": 1}, "b"),
        ({"a": 1, "b": 1}, "a"),
        ({"flag": 1, "share": 2, "x": 1}, "x"),
        ({"flag": 1, "share": 2}, "flag"),
        ({"share": 2, "flag": 1}, "share"),
    ],
)
def test_of_several_faults_the_first_unknown_or_else_the_first_is_named(
    body: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        load_request(ValueSchema(), body)
    assert caught.value.param == param


def test_a_long_field_name_is_cut_in_the_answer() -> None:
    with pytest.raises(BadRequest) as caught:
        load_request(ValueSchema(), {"count": 1, "x" * 1_000_000: 1})
    assert len(caught.value.message) < 200 and len(caught.value.param or "") < 100


def test_a_body_of_unknown_fields_is_refused_fast() -> None:
    body = {f"field{i}": None for i in range(99_000)}
    started = time.process_time()
    with pytest.raises(BadRequest):
        load_request(ValueSchema(), body)
    assert time.process_time() - started < 0.05


def test_null_inside_an_object_is_absent_too() -> None:
    assert load_request(ValueSchema(), {"count": 1, "inner": {"deep": None}}) == Value(1)


def test_neutral_values_pass_and_are_dropped() -> None:
    assert load_request(ValueSchema(), {"count": 1, "later": False}) == Value(1)
