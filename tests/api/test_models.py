"""`GET /v1/models` and one of them, however its name is written."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from qwenapi.keys import KeyRing
from qwenapi.request_context.services import EXTENSION
from tests.generation.test_sampling import CARD
from tests.request_context.test_auth import add_key, app_of  # noqa: F401

AWQ = "/home/modern/models/Qwen/Qwen2.5-Coder-7B-Instruct-AWQ"


def client_of(profile, tmp_path, keys=None, **flags):
    """Return a client of an application whose engines serve a model, as far as its card goes."""
    app = app_of(profile, tmp_path, keys or KeyRing(), **flags)
    engine = SimpleNamespace(card=CARD, is_ready=True)
    app.extensions[EXTENSION] = replace(app.extensions[EXTENSION], engine=engine)
    return app.test_client()


def test_each_listed_model_is_found_by_its_id(tmp_path):
    client = client_of("all", tmp_path)
    listed = client.get("/v1/models").get_json()["data"]
    assert len(listed) >= 4
    for card in listed:
        found = client.get(f"/v1/models/{card['id']}").get_json()
        assert found.items() >= card.items()
        assert found.keys() - card.keys() <= {"default_sampling_params", "input_modalities", "task"}


def test_one_model_says_which_sampling_defaults_are_in_force(tmp_path):
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    neutral |= {"repetition_penalty": 1.0}
    card = client_of("openai", tmp_path).get("/v1/models/qwen-demo").get_json()
    assert card["default_sampling_params"] == neutral and card["task"] == "generate"
    assert card["input_modalities"] == ["text"]
    said = '{"temperature": 0.4, "max_new_tokens": 30}'
    client = client_of("openai", tmp_path, override_generation_config=said, defaults_top_k=5)
    card = client.get("/v1/models/qwen-demo").get_json()
    ours = {"temperature": 0.4, "top_k": 5, "max_tokens": 30}
    assert card["default_sampling_params"] == neutral | ours


def test_a_documented_profile_prints_no_more_than_its_document(tmp_path):
    card = client_of("browser", tmp_path).get("/v1/models/MyCoder").get_json()
    assert "default_sampling_params" not in card


@pytest.mark.parametrize(
    "spelling",
    ["Qwen/Qwen3-8B", "Qwen%2FQwen3-8B", "Qwen%2fQwen3-8B", "Qwen/Qwen3-8B/", "/Qwen/Qwen3-8B",
     "Qwen//Qwen3-8B", "Qwen%2FQwen3%2D8B"],
)  # fmt: skip
def test_slashes_of_a_name_are_written_in_any_way(tmp_path, spelling):
    client = client_of("openai", tmp_path, served_model_name=["Qwen/Qwen3-8B", "short"])
    card = client.get(f"/v1/models/{spelling}").get_json()
    assert (card["id"], card["object"], card["max_model_len"]) == ("Qwen/Qwen3-8B", "model", 100)


@pytest.mark.parametrize("spelling", [AWQ, AWQ.replace("/", "%2F"), AWQ[1:]])
def test_a_path_is_a_name_too(tmp_path, spelling):
    client = client_of("browser", tmp_path)
    assert client.get(f"/v1/models/{spelling}").get_json()["id"] == AWQ


NAMES = ["gpt-4", "Qwen", "qwen-demo/x", "QWEN-DEMO", "x" * 2000, "é", "a/b"]


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_name_is_404_by_its_code(tmp_path, name):
    answer = client_of("openai", tmp_path).get(f"/v1/models/{name}")
    assert answer.status_code == 404
    error = answer.get_json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_a_key_finds_only_its_models(tmp_path, add_key):  # noqa: F811
    key = {"X-Api-Key": add_key(models=("MyCoder",))}
    metrics = {"X-Api-Key": add_key(scopes=("metrics",))}
    client = client_of("all", tmp_path, KeyRing(tmp_path / "keys.json"))
    assert client.get("/v1/models/MyCoder", headers=key).status_code == 200
    assert client.get("/v1/models/Qwen3-32B", headers=key).status_code == 404
    assert client.get("/v1/models/MyCoder", headers=metrics).status_code == 403
    assert client.get("/v1/models/MyCoder").status_code == 401


def test_a_model_is_not_changed_or_deleted(tmp_path):
    client = client_of("openai", tmp_path)
    assert client.delete("/v1/models/qwen-demo").status_code == 405
    assert client.post("/v1/models/qwen-demo", json={}).status_code == 405


def test_without_an_engine_it_is_503(tmp_path):
    client = app_of("openai", tmp_path, KeyRing()).test_client()
    assert client.get("/v1/models/qwen-demo").status_code == 503
