"""What else runs never changes what a request gets."""

import pytest

SAMPLED = {"temperature": 1.0, "top_p": 0.95, "seed": 11, "max_tokens": 20}


def test_a_seeded_request_is_independent_of_its_neighbours(drive, prompts):
    alone, crowded = drive(), drive()
    mine, *others = prompts(32)
    alone.add(0, mine, **SAMPLED)
    crowded.add(0, mine, **SAMPLED)
    for key, prompt in enumerate(others, start=1):
        crowded.add(key, prompt, temperature=0.9, top_k=key, seed=key, max_tokens=5 + key)
    assert crowded.run().tokens(0) == alone.run().tokens(0)


def test_seeds_and_choices_differ_from_each_other(drive, prompts):
    driver = drive()
    [prompt] = prompts(1)
    for seed in (1, 2):
        driver.add(seed, prompt, temperature=1.0, seed=seed, choices=(0, 1))
    driver.run()
    outputs = {tuple(driver.tokens(key, choice)) for key in (1, 2) for choice in (0, 1)}
    assert len(outputs) == 4


def test_choices_reuse_the_prompt_and_choice_0_equals_n_1(drive, prompts):
    driver = drive()
    prompt = prompts(1)[0] * 3
    driver.add(1, prompt, **SAMPLED)
    driver.run()
    before = driver.engine.stats()
    driver.add(2, [9] + prompt, **SAMPLED, choices=(0, 1, 2))
    driver.add(3, [9] + prompt, **SAMPLED)
    driver.run()
    assert driver.tokens(2) == driver.tokens(3)
    finished = driver.finished[2]
    assert finished.prompt_tokens == len(prompt) + 1
    assert finished.completion_tokens == 60
    assert driver.engine.stats().prompt_tokens - before.prompt_tokens == 2 * (len(prompt) + 1)


def test_siblings_wait_until_the_prompt_is_cached(drive, prompts):
    driver = drive(max_num_batched_tokens=32)
    prompt = prompts(1)[0] * 2
    driver.add(0, prompt, choices=(0, 1, 2, 3))
    driver.step()
    assert (driver.engine.stats().running, driver.engine.stats().waiting) == (1, 3)
    used = driver.run().steps
    # Had each choice computed the prompt for itself, that alone would have taken more steps.
    assert used < 4 * len(prompt) // 32 + 16


@pytest.mark.parametrize("params", [{}, SAMPLED, {"repetition_penalty": 1.3, "min_tokens": 9}])
def test_resumed_tokens_equal_the_undisturbed_run(drive, prompts, params):
    driver = drive()
    [prompt] = prompts(1)
    params = {"max_tokens": 20} | params
    driver.add(0, prompt, **params, choices=(0, 1))
    whole = driver.run()
    cut = (tuple(whole.tokens(0, 0)[:7]), tuple(whole.tokens(0, 1)[:3]))
    driver.add(1, prompt, **params, choices=(0, 1), resume=cut)
    driver.run()
    assert driver.tokens(1, 0) == whole.tokens(0, 0)[7:]
    assert driver.tokens(1, 1) == whole.tokens(0, 1)[3:]
    assert driver.chunks[1][0].position == 7
    assert driver.finished[1].completion_tokens == driver.finished[0].completion_tokens == 40


def test_a_resumed_choice_without_room_ends_at_once(drive):
    driver = drive()
    driver.add(0, [5, 6], max_tokens=2, choices=(0, 1), resume=((7, 8), (9,)))
    driver.run()
    first, second = driver.chunks[0]
    assert (first.choice, first.position, first.token_ids) == (0, 2, ())
    assert (second.choice, second.position) == (1, 1)
    assert first.finish_reason == second.finish_reason == "length"
    driver.add(1, [5, 6], max_tokens=2, resume=((7, 8),))
    driver.run()
    assert driver.finished[1].completion_tokens == 2


def test_an_abort_frees_everything_between_two_steps(drive, prompts):
    driver = drive()
    for key, prompt in enumerate(prompts(4)):
        driver.add(key, prompt, choices=(0, 1), max_tokens=50)
    for _ in range(3):
        driver.step()
    for key in range(4):
        driver.engine.abort(key)
        driver.engine.abort(key)
    driver.engine.check_integrity()
    stats = driver.engine.stats()
    assert not driver.engine.has_work
    assert stats.free_blocks == stats.total_blocks
    assert not driver.finished


def test_one_choice_can_be_aborted(drive, prompts):
    driver = drive(max_num_batched_tokens=32)
    driver.add(0, prompts(1)[0] * 2, choices=(0, 1, 2))
    driver.step()
    driver.engine.abort(0, (0,))
    driver.run()
    assert driver.tokens(0, 0) == []
    assert driver.tokens(0, 1) == driver.tokens(0, 2) != []
    driver.add(1, [5, 6, 7], choices=(0, 1))
    driver.step()
    driver.engine.abort(1, (0,))
    driver.engine.abort(1, (1,))
    assert not driver.engine.has_work


def test_a_long_prompt_does_not_stall_a_decoding_row(drive):
    sizes = {"num_blocks": 1700, "max_num_batched_tokens": 2048, "max_num_seqs": 8}
    driver = drive(**sizes, target_step_ms=3_600_000)  # as large as they may be
    driver.add(0, [5, 6, 7], max_tokens=60)
    driver.step()
    driver.add(1, [token % 300 + 4 for token in range(12_000)], max_tokens=2)
    while 1 not in driver.chunks:
        before = len(driver.tokens(0))
        driver.step()
        assert len(driver.tokens(0)) == before + 1
    assert len(driver.tokens(0)) > 12_000 // 2048


def test_stop_tokens_end_a_choice_and_are_reported(drive, prompts):
    driver = drive()
    [prompt] = prompts(1)
    driver.add(0, prompt)
    tokens = driver.run().tokens(0)
    driver.add(1, prompt, stop_token_ids=(tokens[4],))
    driver.run()
    end = tokens.index(tokens[4])
    assert driver.tokens(1) == tokens[: end + 1]
    last = driver.chunks[1][-1]
    assert (last.finish_reason, last.stop_token_id) == ("stop", tokens[4])
    driver.add(2, prompt, stop_token_ids=(tokens[4],), min_tokens=12)
    driver.run()
    assert len(driver.tokens(2)) >= 12
    assert tokens[4] not in driver.tokens(2)[:12]


def test_end_tokens_come_from_the_card(drive, prompts):
    driver = drive()
    assert driver.engine.card.eos_token_ids == (2, 3)
    bias = {"logit_bias": {3: 100.0}}
    driver.add(0, prompts(1)[0], ignore_eos=False, **bias)
    driver.add(1, prompts(1)[0], ignore_eos=True, **bias)
    driver.run()
    assert driver.tokens(0) == [3]
    assert driver.tokens(1) == [3] * 16


def test_no_sequence_outgrows_the_model_length(drive):
    driver = drive(max_model_len=20)
    driver.add(0, range(4, 20), max_tokens=16)
    driver.run()
    assert len(driver.tokens(0)) == 4
    assert driver.chunks[0][-1].finish_reason == "length"


def test_what_cannot_run_is_answered(drive):
    driver = drive()
    driver.add(0, [])
    driver.add(1, [320])
    driver.add(2, [5], max_tokens=0)
    driver.run()
    assert driver.failed.keys() == {0, 1}
    assert driver.chunks[2][0].finish_reason == "length"


def test_logprobs_describe_the_raw_distribution(drive, prompts):
    driver = drive()
    driver.add(0, prompts(1)[0], logprobs=3, temperature=0.5, seed=4)
    driver.run()
    for chunk in driver.chunks[0]:
        [logprob] = chunk.logprobs
        assert logprob.token_id == chunk.token_ids[0]
        assert len(logprob.top_ids) == len(logprob.top_logprobs) == 3
        assert logprob.logprob <= logprob.top_logprobs[0] <= 0


def test_a_bad_word_never_comes_whole_whatever_is_guessed_resumed_or_under_way(drive, prompts):
    [prompt] = prompts(1)
    free = drive()
    free.add(0, prompt, max_tokens=24)
    output = free.run().tokens(0)
    words = (tuple(output[5:8]), tuple(output[12:14]))
    whole = None
    for settings in ({}, {"num_speculative_tokens": 4}, {"async_scheduling": "on"}):
        driver = drive(**settings)
        driver.add(0, prompt, max_tokens=24, bad_words=words)
        tokens = driver.run().tokens(0)
        assert tokens[:7] == output[:7] and tokens[7] != output[7]
        for word in words:
            places = range(len(tokens) - len(word) + 1)
            assert all(tuple(tokens[i : i + len(word)]) != word for i in places)
        whole = whole or tokens
        assert tokens == whole
        driver.add(1, prompt, max_tokens=24, bad_words=words, resume=(tuple(whole[:7]),))
        assert driver.run().tokens(1) == whole[7:]


def test_allowed_tokens_are_the_only_ones(drive, prompts):
    driver = drive(num_speculative_tokens=4)
    for key, prompt in enumerate(prompts(3)):
        driver.add(key, prompt, allowed_token_ids=(9, 77, 210), temperature=1.0, seed=key)
    driver.run()
    assert all(set(driver.tokens(key)) <= {9, 77, 210} for key in range(3))
