"""State slots are never lost or shared, and a state is always that of the very tokens it is for."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.batch import Batch
from workers.engine.block_manager import BlockManager, BlockTable
from workers.engine.request import Request
from workers.engine.scheduler import Scheduler
from workers.engine.sequence_group import SequenceGroup
from workers.engine.state_manager import StateManager
from workers.wire.protocol import Generate, SamplingParams

BLOCK = 32
WRONG = 99  # a token that nothing samples


def managers(num_slots=9, max_running=4, num_blocks=200):
    states = StateManager(num_slots, max_running, BLOCK)
    return states, BlockManager(num_blocks, BLOCK, states=states)


def compute(blocks: BlockManager, tokens: list[int], chunk=1000, salt="") -> BlockTable:
    """Return the table of a sequence whose tokens have been computed, a chunk a step."""
    table = blocks.match(tokens, salt)
    start = len(table.ids) * BLOCK
    while start < len(tokens):
        stop = min(start + chunk, len(tokens))
        assert blocks.extend(table, stop)
        blocks.plan_snapshots(table, start, stop, len(tokens))
        blocks.publish(table, tokens, stop, salt)
        start = stop
    return table


def covered(blocks: BlockManager, tokens: list[int], salt="") -> int:
    """Return how many tokens would not have to be computed."""
    table = blocks.match(tokens, salt)
    found = len(table.ids) * BLOCK
    blocks.free(table)
    return found


@pytest.mark.parametrize(
    ("length", "found"), [(1, 0), (64, 0), (65, 64), (128, 64), (129, 128), (1000, 960)]
)
def test_the_same_prompt_again_is_computed_from_the_last_64_below_its_end(length, found):
    _, blocks = managers()
    tokens = list(range(length))
    blocks.free(compute(blocks, tokens))
    assert covered(blocks, tokens) == found


@pytest.mark.parametrize("chunk", [1, 63, 64, 65, 500])
def test_snapshots_lie_where_they_do_however_a_prompt_is_cut(chunk):
    states, blocks = managers()
    tokens = list(range(700))
    blocks.free(compute(blocks, tokens, chunk))
    assert covered(blocks, tokens) == 640
    assert states.num_snapshots == 1


def test_a_long_prompt_has_snapshots_on_its_way():
    states, blocks = managers(num_slots=20)
    tokens = list(range(5000))
    blocks.free(compute(blocks, tokens, 512))
    assert states.num_snapshots == 3
    assert covered(blocks, [*tokens[:4500], -1, *range(200)]) == 4096


def test_where_prompts_part_the_third_finds_what_the_second_kept():
    _, blocks = managers()
    begin = list(range(500))
    found = []
    for other in (-1, -2, -3):
        prompt = [*begin, *[other] * 300]
        found.append(covered(blocks, prompt))
        blocks.free(compute(blocks, prompt))
    assert found == [0, 0, 448]


def test_an_answer_has_one_snapshot_which_goes_on_with_it():
    states, blocks = managers()
    tokens = list(range(100))
    table = compute(blocks, tokens)
    for length in range(101, 400):
        tokens.append(length)
        assert blocks.extend(table, length)
        blocks.plan_snapshots(table, length - 1, length, length)
        blocks.publish(table, tokens, length, "")
        blocks.check_integrity([table])
    assert states.num_snapshots == 2  # below the prompt's end, and the answer's last
    assert covered(blocks, [*tokens, 1, 2, 3]) == 384


def test_salts_separate_states():
    _, blocks = managers()
    tokens = list(range(200))
    blocks.free(compute(blocks, tokens, salt="a"))
    assert covered(blocks, tokens, "b") == 0
    assert covered(blocks, tokens, "a") == 192


def test_the_snapshot_unused_for_longest_goes_first():
    _, blocks = managers(num_slots=7, max_running=2)
    prompts = [[text] * 100 for text in range(6)]
    for prompt in prompts[:5]:
        blocks.free(compute(blocks, prompt))
    table = compute(blocks, prompts[0])  # used again
    blocks.free(table)
    for prompt in prompts[5:] + [[9] * 100]:
        blocks.free(compute(blocks, prompt))
    found = [covered(blocks, prompt) for prompt in prompts]
    assert found[0] == found[5] == 64 and 0 in found[1:4]


def test_a_snapshot_goes_with_its_block():
    states, blocks = managers(num_blocks=9)
    blocks.free(compute(blocks, [1] * 100))
    assert states.num_snapshots == 1
    table = BlockTable()
    assert blocks.extend(table, 8 * BLOCK)
    assert states.num_snapshots == 0
    blocks.check_integrity([table])


def test_without_room_for_snapshots_sequences_still_run():
    states, blocks = managers(num_slots=4, max_running=3)
    tables = [compute(blocks, [text] * 200) for text in range(3)]
    blocks.check_integrity(tables)
    assert states.num_snapshots == 0
    assert len({table.state.slot for table in tables}) == 3


def test_the_last_snapshot_is_given_to_who_begins_with_it_in_its_own_place():
    states, blocks = managers(num_slots=4, max_running=2)
    blocks.free(compute(blocks, [1] * 100))
    states.take_copies()
    holders = [compute(blocks, [text] * 5) for text in (2,)]
    first = compute(blocks, [1] * 100)
    assert states.take_copies()[-1].target == first.state.slot
    blocks.check_integrity([*holders, first])


def test_without_prefix_caching_nothing_is_kept():
    states = StateManager(9, 4, BLOCK)
    blocks = BlockManager(200, BLOCK, enable_prefix_caching=False, states=states)
    table = compute(blocks, list(range(300)))
    assert table.state.kept == [] and states.num_snapshots == 0


def test_integrity_notices_a_lost_slot():
    _, blocks = managers()
    table = compute(blocks, list(range(100)))
    table.state.slot = 0
    with pytest.raises(AssertionError):
        blocks.check_integrity([table])


class Device:
    """What each slot would hold: the salt and the tokens whose state it is."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[tuple | None] = [None] * num_slots

    def run(self, batch: Batch) -> None:
        """Do what a step does to the slots, and check that each row goes on with its own state."""
        for source, target in batch.copies:
            self.slots[target] = () if source is None else self.slots[source]
        for row in batch.rows:
            state, salt = row.sequence.table.state, row.sequence.request.generate.cache_salt
            tokens = [*row.sequence.token_ids[: row.start], *row.token_ids]
            before = (salt, *tokens[: row.start]) if row.start else ()
            assert self.slots[state.slot] == before, "a sequence goes on with another's state"
            for position, slot in state.kept_within(row.start, row.stop):
                self.slots[slot] = (salt, *tokens[:position])
            self.slots[state.slot] = (salt, *tokens)


class Requests(RuleBasedStateMachine):
    """Requests that come, are computed in chunks, preempted, aborted and end, in any order."""

    NUM_SLOTS, ROWS, NUM_DRAFTS = 8, 4, 0

    def __init__(self) -> None:
        super().__init__()
        drafts = self.NUM_DRAFTS
        self.states = StateManager(self.NUM_SLOTS + drafts, self.ROWS, BLOCK, drafts)
        self.blocks = BlockManager(40, BLOCK, states=self.states)
        self.scheduler = Scheduler(self.blocks, self.ROWS, 150, drafts, self.propose)
        self.device = Device(self.NUM_SLOTS + drafts)
        self.groups: list[SequenceGroup] = []
        self.arrivals = 0

    @rule(
        parts=st.lists(st.integers(0, 1), min_size=1, max_size=4),
        rest=st.integers(1, 100),
        answer=st.integers(1, 150),
        choices=st.integers(1, 3),
        salt=st.sampled_from(["", "x"]),
        priority=st.integers(0, 1),
    )
    def add(self, parts, rest, answer, choices, salt, priority) -> None:
        prompt = [token for part in parts for token in [part] * 96] + [2] * rest
        generate = Generate(
            wid=self.arrivals,
            request_id=str(self.arrivals),
            prompt_ids=tuple(prompt),
            params=SamplingParams(max_tokens=answer),
            choices=tuple(range(choices)),
            cache_salt=salt,
            priority=priority,
        )
        self.arrivals += 1
        request = Request(self.arrivals, generate, self.arrivals, (), 10_000)
        group = SequenceGroup(request)
        self.groups.append(group)
        self.scheduler.add(group, 0.0)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(count=st.integers(1, 80))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.device.run(batch)
        for row in batch.rows:
            # The answer is the same for the same choice: sequences that end alike are found again.
            token = 3 + row.sequence.choice
            self.scheduler.update(row, [token] * row.num_samples)
        self.check()

    def propose(self, asked) -> list[tuple[int, ...]]:
        raise AssertionError("nobody asked for drafts")

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def abort(self, data) -> None:
        left = [group for group in self.groups if not group.is_finished]
        group = data.draw(st.sampled_from(left))
        choices = group.request.generate.choices
        self.scheduler.abort(group, choices[: data.draw(st.integers(1, len(choices)))])

    def check(self) -> None:
        self.scheduler.check_integrity()

    @invariant()
    def adds_up(self) -> None:
        self.check()

    def teardown(self) -> None:
        for _ in range(5000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work
        assert self.blocks.num_free == self.blocks.num_blocks


class DraftingRequests(Requests):
    """The same with drafts, of which any number is right."""

    NUM_DRAFTS = 5

    def propose(self, asked) -> list[tuple[int, ...]]:
        return [
            tuple(
                (WRONG if (len(sequence.token_ids) + i) % 7 > 4 else 3 + sequence.choice)
                for i in range(min(limit, len(sequence.token_ids) % 4))
            )
            for sequence, limit in asked.items()
        ]


class OverlappingRequests(Requests):
    """The same, each step scheduled and computed before the samples of the last are known."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way: Batch | None = None

    def step(self) -> None:
        previous, self.under_way = self.under_way, self.scheduler.schedule()
        self.device.run(known(self.under_way))
        for row in previous.rows if previous else ():
            self.scheduler.update(row, [3 + row.sequence.choice] * row.num_samples)
        self.check()


def known(batch: Batch) -> Batch:
    """Return a batch in whose rows tokens stand that are still to be sampled, as on a device."""
    return Batch(tuple(map(KnownRow, batch.rows)), batch.started, batch.copies)


class KnownRow:
    """A row of an overlapping step, with the token that the pretended model samples."""

    def __init__(self, row) -> None:
        self.sequence, self.start, self.stop = row.sequence, row.start, row.stop
        sampled = 3 + row.sequence.choice
        self.token_ids = [sampled] if row.is_awaited else row.token_ids


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestDraftingRequests = DraftingRequests.TestCase
TestDraftingRequests.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestOverlappingRequests = OverlappingRequests.TestCase
TestOverlappingRequests.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
