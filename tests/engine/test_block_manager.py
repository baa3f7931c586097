"""Blocks are never lost or shared by accident, and a hit is always the very tokens asked for."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from workers.engine.block_manager import BlockManager, BlockTable

SIZE = 4


def computed(blocks: BlockManager, tokens: list[int], salt: str = "") -> BlockTable:
    """Return the table of a sequence whose tokens are all in the cache."""
    table = blocks.match(tokens, salt)
    assert blocks.extend(table, len(tokens))
    blocks.publish(table, tokens, len(tokens), salt)
    return table


def test_a_freed_prefix_is_found_again():
    blocks = BlockManager(9, SIZE)
    first = computed(blocks, list(range(10)))
    ids = list(first.ids)
    blocks.free(first)
    assert blocks.match([*range(8), 77], "").ids == ids[:2]


def test_one_token_always_stays_to_be_computed():
    blocks = BlockManager(9, SIZE)
    blocks.free(computed(blocks, list(range(8))))
    assert len(blocks.match(list(range(8)), "").ids) == 1


def test_salts_separate():
    blocks = BlockManager(9, SIZE)
    blocks.free(computed(blocks, list(range(8)), "a"))
    assert not blocks.match(list(range(9)), "b").ids
    assert blocks.match(list(range(9)), "a").ids


def test_the_same_block_after_another_prefix_is_another_block():
    blocks = BlockManager(9, SIZE)
    blocks.free(computed(blocks, [1, 1, 1, 1, 5, 5, 5, 5]))
    assert not blocks.match([5, 5, 5, 5, 5], "").ids


def test_tails_are_given_away_before_heads_and_old_before_young():
    blocks = BlockManager(6, SIZE)
    old = computed(blocks, [1] * 8)
    young = computed(blocks, [2] * 8)
    blocks.free(old)
    blocks.free(young)
    table = BlockTable()
    assert blocks.extend(table, 2 * SIZE)
    assert len(blocks.match([1] * 8, "").ids) == 1
    assert len(blocks.match([2] * 9, "").ids) == 2


def test_a_reused_place_does_not_continue_its_old_chain():
    blocks = BlockManager(3, SIZE)
    blocks.free(computed(blocks, [1] * 8))
    blocks.free(computed(blocks, [2] * 8))
    assert not blocks.match([1] * 9, "").ids
    blocks.free(computed(blocks, [1] * 4))
    assert len(blocks.match([1] * 9, "").ids) == 1


def test_twins_computed_at_the_same_time_are_named_once():
    blocks = BlockManager(9, SIZE)
    tables = [BlockTable(), BlockTable()]
    for table in tables:
        assert blocks.extend(table, 8)
    for table in tables:
        blocks.publish(table, [3] * 8, 8, "")
    blocks.check_integrity(tables)
    for table in tables:
        blocks.free(table)
    assert len(blocks.match([3] * 9, "").ids) == 2


def test_too_large_a_wish_changes_nothing():
    blocks = BlockManager(4, SIZE)
    table = BlockTable()
    assert not blocks.extend(table, 13)
    assert not table.ids and blocks.num_free == 3


def test_without_prefix_caching_nothing_is_found():
    blocks = BlockManager(9, SIZE, enable_prefix_caching=False)
    blocks.free(computed(blocks, list(range(8))))
    assert not blocks.match(list(range(9)), "").ids


def test_integrity_notices_a_lost_block():
    blocks = BlockManager(9, SIZE)
    computed(blocks, list(range(8)))
    with pytest.raises(AssertionError):
        blocks.check_integrity([])


def test_what_is_forgotten_is_found_by_nobody_and_kept_by_who_has_it():
    blocks = BlockManager(9, SIZE)
    first = computed(blocks, list(range(8)))
    second = computed(blocks, list(range(9)))
    blocks.forget(first)
    assert not blocks.match(list(range(9)), "").ids and second.ids[:2] == first.ids
    blocks.free(first)
    blocks.check_integrity([second])
    blocks.free(second)
    blocks.check_integrity([])


def test_blocks_given_up_unclean_are_told_once_unless_they_can_be_found():
    blocks = BlockManager(9, SIZE)
    table = computed(blocks, list(range(10)))
    last = table.ids[-1]
    blocks.free(table, is_clean=False)
    assert blocks.take_unclean() == [last] and blocks.take_unclean() == []
    again = computed(blocks, list(range(10)))
    ids = list(again.ids)
    blocks.forget(again)
    blocks.free(again, is_clean=False)
    assert sorted(blocks.take_unclean()) == sorted(ids)
    blocks.free(computed(blocks, list(range(10))))
    assert blocks.take_unclean() == []


class Sequences(RuleBasedStateMachine):
    """Sequences that come, grow and go; a model remembers which tokens each block holds."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(12, SIZE)
        self.live: dict[int, tuple[BlockTable, list[int], str]] = {}
        self.content: dict[int, tuple[int, ...]] = {}
        self.serial = 0

    @rule(
        target=tables,
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=24),
        salt=st.sampled_from(["", "x"]),
    )
    def start(self, tokens: list[int], salt: str) -> int:
        table = self.blocks.match(tokens, salt)
        assert len(table.ids) * SIZE < len(tokens)
        for index, id in enumerate(table.ids):
            assert self.content[id] == (salt, *tokens[: (index + 1) * SIZE])
        self.serial += 1
        if self.blocks.extend(table, len(tokens)):
            self.live[self.serial] = (table, tokens, salt)
            self.fill(self.serial)
        else:
            self.blocks.free(table)
        return self.serial

    @rule(serial=tables, token=st.integers(0, 1))
    def append(self, serial: int, token: int) -> None:
        if serial in self.live:
            table, tokens, _ = self.live[serial]
            if self.blocks.extend(table, len(tokens) + 1):
                tokens.append(token)
                self.fill(serial)

    @rule(serial=consumes(tables), is_damaged=st.booleans())
    def free(self, serial: int, is_damaged: bool) -> None:
        if serial in self.live:
            table = self.live.pop(serial)[0]
            mine = set(table.ids)
            if is_damaged:
                self.blocks.forget(table)
            self.blocks.free(table, is_clean=not is_damaged)
            kept = {id for table, _, _ in self.live.values() for id in table.ids}
            assert set(self.blocks.take_unclean()) == (mine - kept if is_damaged else set())

    def fill(self, serial: int) -> None:
        """Note what the device would hold now, and publish it."""
        table, tokens, salt = self.live[serial]
        for index, id in enumerate(table.ids):
            self.content[id] = (salt, *tokens[: (index + 1) * SIZE])
        self.blocks.publish(table, tokens, len(tokens), salt)

    @invariant()
    def adds_up(self) -> None:
        self.blocks.check_integrity([table for table, _, _ in self.live.values()])

    @invariant()
    def sharers_agree(self) -> None:
        for table, tokens, salt in self.live.values():
            for index, id in enumerate(table.ids):
                assert self.content[id] == (salt, *tokens[: (index + 1) * SIZE])


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
