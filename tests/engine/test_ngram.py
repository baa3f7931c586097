from hypothesis import given
from hypothesis import strategies as st

from workers.engine.ngram import NGRAM_SIZES, NgramDrafter


def propose_slowly(ids, limit):
    for size in NGRAM_SIZES:
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start : start + size] == ids[-size:]:
                repeated = ids[start + size :] * limit
                return tuple(repeated[:limit])
    return ()


@given(st.lists(st.sampled_from([0, 1, 256, 65536, 151_935]), max_size=60), st.integers(1, 8))
def test_a_draft_follows_the_last_occurrence_of_the_longest_ngram(ids, limit):
    assert NgramDrafter().propose(ids, limit) == propose_slowly(ids, limit)


def test_it_reads_on_as_tokens_come():
    drafter, ids = NgramDrafter(), [7, 8, 9]
    for token in (10, 11, 7, 8, 9):
        assert drafter.propose(ids, 4) == ()
        ids.append(token)
    assert drafter.propose(ids, 7) == (10, 11, 7, 8, 9, 10, 11), "as if it went on for ever"


def test_wrong_drafts_are_followed_by_longer_and_longer_pauses():
    drafter, ids = NgramDrafter(), [1, 2, 3, 4] * 3
    pauses = []
    for _ in range(9):
        drafter.learn(0)
        pauses.append(0)
        while not drafter.propose(ids, 2):
            pauses[-1] += 1
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    drafter.learn(1)
    assert drafter.propose(ids, 2) == (1, 2)
    drafter.learn(0)
    assert drafter.propose(ids, 2) == () != drafter.propose(ids, 2)
