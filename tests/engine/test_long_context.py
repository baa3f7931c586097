"""Sequences of 300,000 tokens: scheduler, block tables, prefix cache, admission and wire hold.

The model's layers have windows, so that a prompt of this length takes seconds on a CPU; what they
compute depends on the newest tokens alone, and transformers is asked about these, where they stand.
"""

import json
import time

import pytest
import torch

from tests.engine.conftest import write_model
from workers.wire.framing import FrameReader, encode
from workers.wire.protocol import Generate, SamplingParams
from workers.worker.admission import Admission

LENGTH = 300_000
WINDOW, TAIL, NEW_TOKENS = 64, 1000, 8
YARN = {"rope_type": "yarn", "factor": 10.0, "original_max_position_embeddings": 32768}
SETTINGS = {"rope_scaling": json.dumps(YARN), "block_size": 32, "max_num_batched_tokens": 4096}


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windowed")
    own = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}
    return folder, write_model(folder, "qwen3", **own)


@pytest.fixture
def model_of(windowed):
    return lambda name: windowed


@pytest.fixture(scope="module")
def prompt():
    generator = torch.Generator().manual_seed(5)
    return torch.randint(4, 320, (LENGTH,), generator=generator).tolist()


@torch.no_grad()
def check_against_transformers(model, prompt, tokens):
    """Compare with the best tokens behind the prompt's tail, at its own positions."""
    model.config.rope_parameters = {"rope_theta": model.config.rope_parameters["rope_theta"]} | YARN
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    text = torch.tensor([prompt[-TAIL:] + tokens])
    positions = torch.arange(len(prompt) - TAIL, len(prompt) + len(tokens))[None]
    logits = model(text, position_ids=positions).logits[0, TAIL - 1 : -1]
    best, chosen = logits.max(-1).values, logits[torch.arange(len(tokens)), tokens]
    assert float((best - chosen).max()) < 1e-3


def test_a_prompt_of_300000_tokens_is_answered_and_found_again(drive, windowed, prompt):
    driver = drive("windowed", num_blocks=LENGTH // 32 * 2, **SETTINGS)
    assert driver.engine.card.max_model_len == 327_680
    started = time.monotonic()
    driver.add(1, prompt[:50], max_tokens=NEW_TOKENS)
    driver.step()
    driver.add(0, prompt, max_tokens=NEW_TOKENS)
    while 1 not in driver.finished:
        driver.step()
    assert 0 not in driver.chunks, "an answer that runs goes on between the prompt's chunks"
    driver.run()
    print(f"{LENGTH} tokens in {time.monotonic() - started:.0f} s")
    check_against_transformers(windowed[1], prompt, driver.tokens(0))
    before = driver.steps
    driver.add(2, prompt, max_tokens=NEW_TOKENS)
    driver.run()
    assert driver.cached_tokens[2] >= LENGTH - 32 and driver.steps - before < 2 * NEW_TOKENS
    assert driver.tokens(2) == driver.tokens(0)


def test_what_does_not_fit_beside_it_waits_and_is_preempted_for_nobody(drive, prompt):
    """Two of them in a cache for one and a half: the second follows the first."""
    driver = drive("windowed", num_blocks=LENGTH // 32 * 3 // 2, **SETTINGS)
    for key in range(2):
        driver.add(key, [key + 4, *prompt[1:]], max_tokens=NEW_TOKENS)
    driver.run()
    assert set(driver.finished) == {0, 1}
    assert all(len(driver.tokens(key)) == NEW_TOKENS for key in range(2))


def test_a_prompt_of_300000_tokens_goes_over_the_wire_and_is_admitted(drive, prompt):
    driver = drive("windowed", num_blocks=LENGTH // 32 * 2, **SETTINGS)
    params = SamplingParams(max_tokens=NEW_TOKENS)
    asked = Generate(wid=1, request_id="long", prompt_ids=tuple(prompt), params=params)
    [received] = FrameReader("engine").feed(encode(asked))
    assert received == asked
    admission = Admission(driver.engine.card, max_waiting=16)
    assert admission.decide((0, 1), received) is None
    too_long = Generate(wid=2, request_id="longer", prompt_ids=(5,) * 327_680, params=params)
    assert admission.decide((0, 2), too_long).reason == "too_long"
