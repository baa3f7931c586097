"""Who gets in: every route of every profile, with and without keys, asked of the application."""

import pytest
import werkzeug.exceptions

from qwenapi.app import create_app
from qwenapi.engines.client import EngineClient
from qwenapi.errors import ApiError, Forbidden, RateLimited, Unauthorized
from qwenapi.generation.tokenizers import Tokenizers
from qwenapi.keys import KeyRing
from qwenapi.keys.key import SCOPES, Key, KeyLimits, new_key
from qwenapi.keys.key_file import edited
from qwenapi.metrics.store import MetricsStore
from qwenapi.request_context import auth
from qwenapi.request_context.services import Services
from qwenapi.settings.profile import Profiles
from qwenapi.settings.sources import load, load_profiles

PROFILES = ("openai", "anthropic", "coder", "qwen2", "guide", "browser", "news", "all")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PUBLIC = ("/livez", "/readyz", "/health", "/", "/version", "/openapi.json", "/ui", "/docs")
STATIC = "dummy-key"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def app_of(profile, tmp_path, keys, **flags):
    flags |= {"profile": profile}
    settings = load(flags, {})
    profiles = Profiles(load_profiles(settings, flags, {}))
    metrics_store = MetricsStore.lease("", [one.name for one in profiles])
    engine = EngineClient(tmp_path, "test", lambda card: None)
    return create_app(Services(settings, profiles, engine, Tokenizers(), metrics_store, keys=keys))


@pytest.fixture
def add_key(tmp_path):
    """Return what adds a key to the test's file and gives its text."""

    def add(**facts):
        fresh = new_key()
        facts = {"tenant": "acme", **facts}
        with edited(tmp_path / "keys.json") as keys:
            keys.append(Key(fresh.id, fresh.sha256, **facts))
        return fresh.text

    return add


@pytest.fixture(params=PROFILES)
def app(request, tmp_path):
    return app_of(request.param, tmp_path, KeyRing(static=STATIC))


def addresses(app):
    """Yield every rule with an address that matches it."""
    for rule in app.url_map.iter_rules():
        values = dict.fromkeys(rule.arguments, "x")
        yield rule.rule, app.url_map.bind("localhost").build(rule.endpoint, values)


def is_public(rule):
    is_page = rule.startswith(("/ui/", "/docs/")) and rule != "/ui/status.json"
    return rule in PUBLIC or is_page


def test_nothing_but_the_public_routes_is_answered_without_a_key(app):
    client = app.test_client()
    asked = 0
    for rule, address in addresses(app):
        methods = app.url_map.bind("localhost").allowed_methods(address)
        for method in METHODS:
            status = client.open(address, method=method).status_code
            if is_public(rule) and method in methods:
                assert status != 401, (rule, method)
            else:
                assert status == 401, (rule, method)
            asked += 1
    assert asked >= 10 * len(METHODS)


def test_with_a_key_every_route_is_reached_and_the_unknown_is_unknown(app):
    client = app.test_client()
    key = {"Authorization": f"Bearer {STATIC}"}
    for rule, address in addresses(app):
        for method in app.url_map.bind("localhost").allowed_methods(address):
            assert client.open(address, method=method, headers=key).status_code != 401, rule
    assert client.get("/nowhere", headers=key).status_code == 404
    assert client.put("/livez", headers=key).status_code == 405


def test_the_list_of_public_routes_is_the_decided_one(app):
    assert frozenset(PUBLIC) == auth.PUBLIC
    assert all(auth.is_public(rule) == is_public(rule) for rule, _ in addresses(app))


def test_every_route_that_is_not_public_has_a_scope_somebody_wrote_down(app):
    """One that has none would need `admin`; then it is missing from auth.SCOPES."""
    for rule, _ in addresses(app):
        assert is_public(rule) or auth.scope_of(rule) != "admin", rule
    assert auth.scope_of("/v2/new") == "admin"


@pytest.mark.parametrize(
    "address",
    [
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models/",
        "/v1/%6dodels",
        "/livez/../v1/models",
        "/livez/%2e%2e/v1/models",
        "/ui/../v1/models",
        "/ui/%2e%2e/v1/models",
        "/v1/models?api_key=" + STATIC,
        "/v1/models?key=" + STATIC,
        "/v1/models;/livez",
        "/v1/models%3f/livez",
        "/nowhere",
    ],
)
def test_no_spelling_of_an_address_gets_round_the_key(tmp_path, address):
    client = app_of("all", tmp_path, KeyRing(static=STATIC)).test_client()
    answer = client.get(address)
    # Below /ui/ a name that is no file of the page's is unknown to anybody.
    assert answer.status_code == (404 if address.startswith("/ui/") else 401)
    assert b"qwen" not in answer.get_data().lower()


@pytest.mark.parametrize(
    "host", ["x", "x/?#", "x/livez", "x:80:80", "[::1", "127.0.0.1/livez?", ""]
)
def test_no_host_gets_round_the_key(tmp_path, host):
    client = app_of("all", tmp_path, KeyRing(static=STATIC)).test_client()
    assert client.get("/v1/models", headers={"Host": host}).status_code in (400, 401)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", STATIC)],
        [("Authorization", f"Basic {STATIC}")],
        [("Authorization", f"Bearer {STATIC} x")],
        [("Authorization", f"Bearer {STATIC},Bearer {STATIC}")],
        [("Authorization", f"Bearer {STATIC.upper()}")],
        [("Authorization", "Bearer " + "x" * 300)],
        [("Authorization", "Bearer \xe9")],
        [("Authorization", f"Bearer {STATIC}"), ("X-Api-Key", "other")],
        [("Authorization", f"Bearer {STATIC}"), ("X-Api-Key", STATIC.upper())],
        [("Authorization", f"Basic {STATIC}"), ("X-Api-Key", STATIC)],
        [("Authorization", "Bearer wrong"), ("X-Api-Key", "wrong")],
        [("X-Api-Key", f"{STATIC},{STATIC}")],
        [("Authorization", f"Bearer {STATIC}"), ("X-Api-Key", "")],
        [("Authorization", "Bearer wrong"), ("X-Api-Key", STATIC)],
        [("X-Api-Key", f"Bearer {STATIC}")],
        [("X-Forwarded-User", "admin")],
        [("X-Original-Url", "/livez")],
        [("X-Http-Method-Override", "OPTIONS")],
        [("Access-Control-Request-Method", "GET"), ("Origin", "https://a.example")],
    ],
)
def test_a_request_with_no_key_or_two_or_a_wrong_one_gets_the_same_401(tmp_path, headers):
    client = app_of("all", tmp_path, KeyRing(static=STATIC)).test_client()
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.get_json() == {
        "error": {
            "message": Unauthorized.sentence,
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {STATIC}"}, {"authorization": f"bearer  {STATIC}"}]
    + [{"X-Api-Key": STATIC}, {"x-api-key": f" {STATIC} "}]
    + [{"Authorization": f"Bearer {STATIC}", "X-Api-Key": STATIC}]
    + [{"authorization": f"bearer {STATIC}", "x-api-key": f" {STATIC} "}],
)
def test_a_key_may_come_in_either_header_or_the_same_in_both(tmp_path, headers):
    client = app_of("all", tmp_path, KeyRing(static=STATIC)).test_client()
    assert client.get("/v1/models", headers=headers).status_code == 503  # no engine is up


def test_a_key_that_is_disabled_or_over_or_half_right_is_as_unknown_as_any(tmp_path, add_key):
    from datetime import UTC, datetime

    good = add_key()
    over = add_key(not_after=datetime(2020, 1, 1, tzinfo=UTC))
    disabled = add_key(disabled=True)
    other = new_key().text
    half = good[:12] + other[12:]
    client = app_of("openai", tmp_path, KeyRing(tmp_path / "keys.json")).test_client()

    def ask(key):
        return client.get("/v1/models", headers={"X-Api-Key": key})

    assert ask(good).status_code == 503
    bodies = {ask(key).get_data() for key in (over, disabled, other, half, good[:-1], good + "x")}
    assert len(bodies) == 1 and b"invalid_api_key" in bodies.pop()


@pytest.mark.parametrize(
    ("profile", "address", "shape"),
    [
        ("openai", "/v1/chat/completions", ["error", "message"]),
        ("guide", "/v1/chat/completions", ["error", "message"]),
        ("coder", "/v1/code/generate", ["detail"]),
        ("coder", "/nowhere", ["detail"]),
        ("qwen2", "/generate", ["detail"]),
        ("news", "/v1/chat/completions", ["error"]),
        ("all", "/v1/code/chat_stream", ["detail"]),
        ("all", "/generate", ["detail"]),
    ],
)
def test_a_refusal_is_in_the_callers_dialect(tmp_path, profile, address, shape):
    answer = app_of(profile, tmp_path, KeyRing(static=STATIC)).test_client().post(address, json={})
    body = answer.get_json()
    for step in shape:
        body = body[step]
    assert (answer.status_code, body) == (401, Unauthorized.sentence)


def test_a_key_opens_what_its_scopes_name_and_an_admins_all(tmp_path, add_key):
    keys = {scope: add_key(scopes=(scope,)) for scope in SCOPES}
    client = app_of("all", tmp_path, KeyRing(tmp_path / "keys.json")).test_client()
    asked = {
        ("POST", "/v1/chat/completions"): "inference",
        ("POST", "/generate"): "inference",
        ("POST", "/v1/code/chat_stream"): "inference",
        ("GET", "/v1/models"): "inference",
        ("GET", "/metrics"): "metrics",
        ("GET", "/metrics/prometheus"): "metrics",
        ("GET", "/stats"): "metrics",
        ("GET", "/load"): "metrics",
        ("GET", "/api/v1/metrics"): "metrics",
        ("POST", "/v1/responses"): "inference",
        ("POST", "/v1/responses/input_tokens"): "inference",
        ("GET", "/v1/responses/x"): "conversations",
        ("DELETE", "/v1/responses/x"): "conversations",
        ("POST", "/v1/responses/x/cancel"): "conversations",
        ("GET", "/v1/responses/x/input_items"): "conversations",
        ("POST", "/v1/conversations"): "conversations",
        ("GET", "/v1/conversations/x"): "conversations",
        ("GET", "/v1/conversations/x/items"): "conversations",
        ("DELETE", "/v1/code/conversations/x"): "conversations",
    }
    for (method, address), needed in asked.items():
        for scope, key in keys.items():
            if needed == "conversations" and scope in (needed, "admin"):
                continue  # this application has no store; tests/e2e asks a server that has one
            answer = client.open(address, method=method, headers={"X-Api-Key": key})
            is_open = scope in (needed, "admin")
            assert (answer.status_code == 403) is not is_open, (address, scope)


def test_a_key_sees_only_its_models(tmp_path, add_key):
    key = {"X-Api-Key": add_key(models=("MyCoder",))}
    client = app_of("all", tmp_path, KeyRing(tmp_path / "keys.json")).test_client()

    def refusal(address, **body):
        answer = client.post(address, json=body, headers=key)
        return answer.status_code, answer.get_json()

    foreign = refusal("/v1/chat/completions", model="Qwen3-32B", **CHAT)
    unknown = refusal("/v1/chat/completions", model="gpt-99", **CHAT)
    assert foreign[0] == unknown[0] == 404
    assert str(foreign[1]).replace("Qwen3-32B", "gpt-99") == str(unknown[1])
    assert "Served: 'MyCoder'." in str(foreign[1])
    assert refusal("/v1/chat/completions", **CHAT)[0] == 404  # the news profile's
    assert refusal("/generate", prompt="x")[0] == 404
    assert refusal("/v1/chat/completions", model="MyCoder", **CHAT)[0] == 503


def test_requests_of_a_minute_are_counted_and_the_next_is_told_when(tmp_path, add_key):
    key = {"X-Api-Key": add_key(limits=KeyLimits(requests_per_minute=3))}
    client = app_of("all", tmp_path, KeyRing(tmp_path / "keys.json")).test_client()
    for left in (2, 1, 0):
        answer = client.post("/v1/chat/completions", json=CHAT, headers=key)
        assert answer.status_code == 503
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
    asked = {
        "/v1/chat/completions": (CHAT, lambda body: body["error"]),  # news: flat
        "/v1/completions": (
            {"model": "Qwen3-32B", "prompt": "x"},
            lambda body: body["error"]["message"],
        ),
        "/v1/code/generate": ({"prompt": "x"}, lambda body: body["detail"]),
        "/generate": ({"prompt": "x"}, lambda body: body["detail"]),
    }
    for address, (body, sentence) in asked.items():
        answer = client.post(address, json=body, headers=key)
        assert answer.status_code == 429, address
        assert 1 <= int(answer.headers["Retry-After"]) <= 20
        assert sentence(answer.get_json()) == "This key is limited to 3 requests per minute."
    assert client.get("/v1/models", headers=key).status_code == 503  # asks for no answer


def test_health_names_the_rate_all_keys_share_and_otherwise_what_is_documented(tmp_path, add_key):
    def shown(ring):
        from qwenapi.api.ops.health import health_body

        app = app_of("news", tmp_path, ring)
        news = app.extensions["qwenapi"].profiles.for_health
        rate = ring.shared_rate
        body = health_body(news, None, [], f"{rate}/min" if rate else news.rate_limit)
        return body["limits"]["rate_limit"]

    assert shown(KeyRing()) == "无限制"
    add_key(limits=KeyLimits(requests_per_minute=60))
    assert shown(KeyRing(tmp_path / "keys.json")) == "60/min"
    add_key(limits=KeyLimits(requests_per_minute=60), tenant="other")
    assert shown(KeyRing(tmp_path / "keys.json")) == "60/min"
    add_key(limits=KeyLimits(requests_per_minute=30))
    assert shown(KeyRing(tmp_path / "keys.json")) == "无限制"


def test_a_preflight_of_an_allowed_page_needs_no_key_and_its_401_can_be_read(tmp_path):
    client = app_of("guide", tmp_path, KeyRing(static=STATIC)).test_client()
    page = {"Origin": "https://a.example"}
    question = page | {"Access-Control-Request-Method": "POST"}
    answer = client.options("/v1/chat/completions", headers=question)
    assert answer.status_code == 204
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    everywhere = app_of("all", tmp_path, KeyRing(static=STATIC)).test_client()
    refused = everywhere.post("/v1/chat/completions", json=CHAT, headers=page)
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("api.example", True),
        ("API.example:8000", True),
        ("[::1]:8000", True),
        ("api.example.", True),
        ("evil.example", False),
        ("api.example.evil.example", False),
        ("", False),
    ],
)
def test_a_host_that_is_not_trusted_is_refused_but_for_probes(tmp_path, host, is_ours):
    trusted = ["api.example", "[::1]"]
    client = app_of("openai", tmp_path, KeyRing(), trusted_hosts=trusted).test_client()
    answer = client.get("/version", headers={"Host": host})
    assert answer.status_code == (200 if is_ours else 400)
    assert client.get("/livez", headers={"Host": host}).status_code == 200


def test_without_keys_everybody_is_the_same_tenant_and_no_header_matters(tmp_path):
    client = app_of("all", tmp_path, KeyRing()).test_client()
    for headers in ({}, {"Authorization": "Bearer any"}, {"X-Api-Key": "\xe9"}):
        answer = client.get("/version", headers=headers)
        assert answer.status_code == 200
        assert client.get("/v1/models", headers=headers).status_code == 503


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Unauthorized(), 401, "invalid_request_error", "invalid_api_key"),
        (Forbidden("metrics"), 403, "invalid_request_error", "missing_scope"),
        (RateLimited(), 429, "rate_limit_error", "rate_limit_exceeded"),
    ],
)
def test_the_errors_of_keys_know_their_status_and_code(error: ApiError, status, kind, code):
    assert (error.status, error.type, error.code) == (status, kind, code)
    assert status in werkzeug.exceptions.default_exceptions
