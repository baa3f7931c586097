"""A hybrid's own layer drafts what it should, and no answer is another for it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from qwenapi.doctor.memory import find_room, make_plan
from qwenapi.doctor.report import refuse_unfit
from qwenapi.settings.table import Settings
from tests.engine.conftest import HYBRIDS, Driver, write_model
from tests.engine.grammar_driver import GrammarDriver, compiler_of
from tests.engine.mtp_models import (
    published,
    write_predictable,
    write_random,
    write_tensors,
)
from tests.engine.test_grammar import VOCABULARY, answers
from tests.engine.test_hybrid import DRAWN, NEAR_TIE, prompt_of
from tests.engine.test_steps import load, said
from tests.grammar.conftest import DEMO, IM_END
from tests.model.packers import Fp8Packer
from workers.checkpoint.checkpoint import Checkpoint
from workers.config import EngineConfig
from workers.engine.engine import Engine
from workers.engine.start import _uses_kernels
from workers.errors import ConfigError

WRITERS = {"random": write_random, "predictable": write_predictable}


@pytest.fixture(params=HYBRIDS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def mtp_model(tmp_path_factory):
    """Return a model of an architecture and a kind, written once."""
    made = {}

    def mtp_model(name, kind):
        if (name, kind) not in made:
            made[name, kind] = WRITERS[kind](tmp_path_factory.mktemp(f"{name}_{kind}"), name)
        return made[name, kind]

    return mtp_model


def mtp(count=3):
    return json.dumps({"method": "mtp", "num_speculative_tokens": count})


def start(path, drafts=3, **settings):
    """Return a driver; without drafts, one whose answers the others' must equal."""
    defaults = {"num_blocks": 400, "block_size": 8, "threads": 2, "dtype": "float32"}
    speculative = {"speculative_config": mtp(drafts)} if drafts else {}
    config = EngineConfig(str(path), device="cpu", **(defaults | speculative | settings))
    return Driver(Engine(config, lambda stage, fraction: None))


def record(driver):
    """Return the list of all drafts made from now on: the text before them, and the logits of
    each, which is the best by these.
    """
    speculation = driver.engine._scheduler.speculation
    drafter = driver.engine._runner._decoder.drafter
    propose, head, found, seen = speculation._propose, drafter._head, [], []

    def recorded_head(normed):
        seen.append(head(normed))
        return seen[-1]

    def recorded(asked):
        seen.clear()
        drafts = propose(asked)
        logits = [[] for _ in drafts]
        for depth, of_rows in enumerate(seen):
            rows = [i for i, draft in enumerate(drafts) if depth < len(draft)]
            for row, mine in zip(rows, of_rows, strict=True):
                assert drafts[row][depth] == mine.argmax()
                logits[row].append(mine)
        found.extend(
            (list(sequence.token_ids), draft, mine)
            for sequence, draft, mine in zip(asked, drafts, logits, strict=True)
            if draft
        )
        return drafts

    speculation._propose, drafter._head = recorded, recorded_head
    return found


def check_drafts(found, reference):
    for tokens, drafts, logits in found:
        for mine, theirs in zip(logits, reference.logits(tokens, drafts), strict=True):
            assert torch.allclose(mine, theirs, rtol=0, atol=NEAR_TIE), (len(tokens), drafts)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("random", {}),
        ("predictable", {}),
        ("random", {"max_num_batched_tokens": 65, "block_size": 32}),
        ("predictable", {"num_blocks": 26, "max_num_batched_tokens": 48}),
        ("random", {"deterministic": True, "enable_prefix_caching": False}),
        ("predictable", {"async_scheduling": "on"}),
    ],
    ids=["whole", "counting", "in pieces", "preempted", "deterministic", "overlapping"],
)
def test_drafts_are_those_of_the_reference(mtp_model, prompts, name, kind, settings):
    path, reference = mtp_model(name, kind)
    driver = start(path, max_num_seqs=8, **settings)
    found = record(driver)
    for key, prompt in enumerate([[7], *prompts(5, longest=80), prompt_of(130)]):
        drawn = DRAWN if key % 2 else {}
        driver.add(key, prompt, max_tokens=12, choices=(0, 1) if key == 1 else (0,), **drawn)
    driver.run()
    assert len(found) > 20 and max(len(drafts) for _, drafts, _ in found) == 3
    assert bool(driver.engine.stats().preemptions) == ("num_blocks" in settings)
    check_drafts(found, reference)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_drafts_behind_a_prefix_found_again_are_no_others(mtp_model, name, penalty):
    """Also where another token followed the prefix before, and where an answer is gone on with
    that was decoded with drafts or, because of a penalty, without.
    """
    path, reference = mtp_model(name, "random")
    driver = start(path)
    prefix = prompt_of(150)
    driver.add(0, prefix, max_tokens=60, frequency_penalty=penalty)
    turn = [*prefix, *driver.run().tokens(0), *prompt_of(9)]
    found = record(driver)
    for key, prompt in enumerate((prefix, [*prefix[:128], 5], turn, [*turn[:-3], 4]), start=1):
        driver.add(key, prompt, max_tokens=8)
        driver.run()
    assert list(driver.cached_tokens.values()) == [0, 128, 128, 192, 192]
    assert len(found) > 20
    check_drafts(found, reference)


@pytest.mark.parametrize("mode", [{}, {"async_scheduling": "on"}], ids=["plain", "overlapping"])
def test_a_random_load_is_answered_alike(mtp_model, prompts, name, mode):
    path = mtp_model(name, "predictable").path
    settings = {"num_blocks": 26, "max_num_seqs": 6, "max_num_batched_tokens": 48}
    plain, drafting = start(path, 0, **settings), start(path, **settings, **mode)
    assert load(drafting, prompts, 1) == load(plain, prompts, 1)
    stats = drafting.engine.stats()
    assert stats.preemptions > 0 and stats.drafted_tokens > stats.accepted_tokens


@pytest.mark.parametrize("overlapping", ["off", "on"])
def test_sixteen_at_once_are_answered_alike(mtp_model, prompts, name, overlapping):
    """Drafts are made once no more than eight are left, of whom some steps had none."""
    path, reference = mtp_model(name, "predictable")
    drivers = start(path, 0), start(path, async_scheduling=overlapping)
    found = record(drivers[1])
    for driver in drivers:
        for key, prompt in enumerate(prompts(16, longest=150)):
            fields = {"logprobs": 2} | (DRAWN if key % 2 else {})
            driver.add(key, prompt, max_tokens=10 + key, **fields)
        driver.run()
    for key in range(16):
        assert said(drivers[1], key) == said(drivers[0], key)
    assert drivers[1].engine.stats().accepted_tokens > 0
    check_drafts(found, reference)


def test_a_state_goes_back_from_wrong_drafts_to_the_bit(mtp_model, name):
    bits = []
    for drafts in (0, 3):
        driver = start(mtp_model(name, "predictable").path, drafts, deterministic=True)
        driver.add(0, prompt_of(50), max_tokens=60, logprobs=2, **DRAWN)
        bits.append([chunk.logprobs for chunk in driver.run().chunks[0]])
    stats = driver.engine.stats()
    assert bits[0] == bits[1] and 0 < stats.accepted_tokens < stats.drafted_tokens


@pytest.mark.parametrize("kind", ["drawn", "greedy"])
def test_an_answer_of_a_given_form_is_the_same(tmp_path, name, kind):
    fields = {"vocab_size": VOCABULARY, "eos_token_id": IM_END}
    write_random(tmp_path, name, **fields)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END]}))
    shutil.copy(DEMO, tmp_path / "tokenizer.json")
    plain, drafting = start(tmp_path, 0).engine, start(tmp_path).engine
    compiler, tokenizer = compiler_of(plain.card), Tokenizer.from_file(str(DEMO))
    one, other = (answers(GrammarDriver(e, compiler, tokenizer), kind) for e in (plain, drafting))
    compiler.close()
    assert one == other
    assert drafting.stats().drafted_tokens > 0


@pytest.mark.parametrize("cut", [0, 1, 7, 30])
def test_a_resumed_answer_is_the_undisturbed_one(mtp_model, name, cut):
    path = mtp_model(name, "predictable").path
    fields = {"max_tokens": 40} | DRAWN
    whole, successor = start(path, 0), start(path)
    whole.add(0, prompt_of(100), **fields)
    tokens = whole.run().tokens(0)
    successor.add(0, prompt_of(100), **fields, resume=(tuple(tokens[:cut]),))
    assert successor.run().tokens(0) == tokens[cut:]


def test_what_is_predictable_takes_few_steps_and_what_is_random_as_many(mtp_model, name):
    steps, shares = [], []
    for kind in ("predictable", "random"):
        driver = start(mtp_model(name, kind).path)
        driver.add(0, prompt_of(40), max_tokens=80)
        driver.run()
        stats = driver.engine.stats()
        steps.append(driver.steps)
        shares.append(stats.accepted_tokens / stats.drafted_tokens)
    assert shares[0] > 0.9 and shares[1] < 0.1
    assert steps[0] < 30 and steps[1] > 60


def test_a_row_whose_drafts_fail_takes_no_steps_from_the_others(mtp_model, name):
    path = mtp_model(name, "predictable").path
    steps = []
    for with_other in (False, True):
        driver = start(path)
        driver.add(0, prompt_of(40), max_tokens=60)
        if with_other:  # of all tokens one as likely as the other
            driver.add(1, prompt_of(41), max_tokens=200, temperature=50.0, seed=1)
        while 0 not in driver.finished:
            driver.step()
        steps.append(driver.steps)
    assert steps[0] == steps[1] < 25


def test_a_draft_ends_where_the_sequence_does(mtp_model, name):
    path = mtp_model(name, "predictable").path
    for count in range(1, 9):
        driver = start(path, 4, max_model_len=64, num_blocks=9)
        driver.add(0, prompt_of(64 - count), max_tokens=50)
        assert len(driver.run().tokens(0)) == count


@pytest.mark.parametrize("fused", [False, True], ids=["one by one", "fused"])
def test_experts_load_in_either_layout(tmp_path, fused):
    path, reference = write_random(tmp_path, "qwen3_5_moe")
    write_tensors(path, published(reference, fused=fused))
    driver = start(path)
    found = record(driver)
    driver.add(0, prompt_of(30))
    driver.run()
    check_drafts(found, reference)


def test_numbers_that_are_none_in_the_layer_spoil_drafts_alone(tmp_path, prompts):
    path, reference = write_random(tmp_path, "qwen3_5")
    tensors = published(reference)
    tensors["mtp.fc.weight"][5, 3] = float("nan")
    write_tensors(path, tensors)
    drivers = start(path, 0, num_blocks=26), start(path, num_blocks=26)
    for driver in drivers:
        for key, prompt in enumerate(prompts(8, longest=60)):
            driver.add(key, prompt, logprobs=2)
        driver.run()
        assert not driver.failed
    for key in range(8):
        assert said(drivers[1], key) == said(drivers[0], key)
    assert drivers[1].engine.stats().drafted_tokens > 0


@pytest.mark.parametrize("architecture", ["qwen3_5", "qwen3_next"])
def test_a_packed_layer_drafts_as_its_unpacked_twin(tmp_path, architecture):
    path, reference = write_random(tmp_path, architecture)
    packer, rng = Fp8Packer((24, 48)), np.random.default_rng(4)
    packed, plain = {}, {}
    for name, tensor in published(reference).items():
        plain[name] = packed[name] = tensor
        if name.endswith("proj.weight"):
            parts, exact = packer.linear(tensor.numpy(), rng)
            plain[name] = torch.from_numpy(exact)
            packed |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    file, found = tmp_path / "config.json", []
    for tensors, more in ((packed, {"quantization_config": packer.config}), (plain, {})):
        fields = json.loads(file.read_text()) | {"quantization_config": None}
        file.write_text(json.dumps(fields | more))
        write_tensors(path, tensors)
        driver = start(path)
        found.append(record(driver))
        driver.add(0, prompt_of(30))
        driver.run()
    one, other = ([(tokens, drafts) for tokens, drafts, _ in each] for each in found)
    assert one == other != []


def doctors_words(path, **changes):
    settings = Settings(model=str(path), device="cpu", num_blocks=20, speculative_config=mtp())
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(replace(settings, **changes))
    return str(caught.value)


def engines_words(path, monkeypatch):
    monkeypatch.setattr("workers.model.loader.open_source", None)  # nothing is read to refuse it
    with pytest.raises(ConfigError) as caught:
        start(path)
    return str(caught.value)


@pytest.mark.parametrize("architecture", ["qwen3_5", "qwen3"])
def test_a_model_without_the_layer_is_refused_in_one_sentence(tmp_path, monkeypatch, architecture):
    write_model(tmp_path, architecture)
    words = engines_words(tmp_path, monkeypatch)
    assert words == doctors_words(tmp_path)
    assert words == (
        "speculative_config: method mtp takes the mtp.* tensors of a hybrid model, and"
        f" {tmp_path} has none; choose method ngram, or leave it out"
    )


@pytest.mark.parametrize(
    ("part", "new", "words"),
    [
        ("mtp.fc.weight", None, "mtp.fc.weight is missing"),
        ("mtp.fc.weight", torch.zeros(64, 64), "mtp.fc.weight has the shape [64, 64]"),
        ("mtp.layers.0.self_attn.q_norm.weight", torch.zeros(32).int(), "is of type I32"),
        ("mtp.layers.1.input_layernorm.weight", torch.zeros(64), "no place for mtp.layers.1."),
    ],
)
def test_a_damaged_layer_is_named_if_it_is_asked_for(tmp_path, monkeypatch, part, new, words):
    path, reference = write_random(tmp_path, "qwen3_5")
    tensors = published(reference)
    tensors.pop(part, None)
    write_tensors(path, tensors | ({} if new is None else {part: new}))
    Checkpoint.at(path).check()
    found = engines_words(path, monkeypatch)
    assert words in found and found == doctors_words(path)


@pytest.mark.parametrize("changes", [{"max_num_seqs": 4}, {"kv_cache_gb": 0.02}])
def test_the_doctor_counts_the_layer(mtp_model, name, changes):
    path = mtp_model(name, "random").path
    plans = []
    for speculative in ("", mtp(2)):
        settings = Settings(model=str(path), dtype="float32", device="cpu")
        settings = replace(settings, speculative_config=speculative, **changes)
        checkpoint = Checkpoint.of(settings.engine_config())
        room = find_room(settings, 0)
        plans.append(make_plan(settings, checkpoint.weights, checkpoint.config, room))
    engine = Engine(replace(settings.engine_config(), threads=2), lambda stage, fraction: None)
    states = engine._blocks.states
    slot_bytes = checkpoint.config.state_bytes + 4 * 64
    assert engine.card.num_blocks == plans[1].num_blocks
    assert plans[1].state_bytes == (states.num_slots + states.num_for_drafts + 1) * slot_bytes
    layer = sum(parameter.numel() for parameter in mtp_model(name, "random").reference.parameters())
    assert plans[1].weights - plans[0].weights == 4 * layer
    assert plans[1].block_bytes == 2 * plans[0].block_bytes  # one layer of four has attention


def test_the_layer_is_not_loaded_where_nobody_asks_for_it(mtp_model, name):
    driver = start(mtp_model(name, "random").path, 0)
    assert driver.engine._runner._decoder.drafter is None


def test_on_cuda_it_is_said_that_torch_computes_the_model(caplog):
    config = EngineConfig("model", speculative_config=mtp())
    assert not _uses_kernels(config, torch.device("cuda"), is_hybrid=True)
    assert "with drafts is computed by torch on cuda" in caplog.text
