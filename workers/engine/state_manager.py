"""StateManager: the slots of recurrent states of hybrid models, and snapshots for prefix hits.

Knows slots by number, and blocks by the uids of their content. Refuses to know tensors, tokens and
scheduling. A slot is blank, one sequence's, or a snapshot's: the state behind the last token of one
known block. A prefix can be used again up to its last snapshot, and no further.

    tokens      ├── 64 ──┼── 64 ──┼─ ... ─┼── 64 ──┼── 64 ──┼─ 30 ┤ answer ├── 64 ──┼─ 9 ┤
    snapshots                     each 2,048       the last                 the last,
                                                   below the prompt's end   replacing the one before

All lie on multiples of 64, where a prompt that is cut gives the same bits as a whole one, and where
blocks end. When slots run out, the snapshot unused for longest goes; with its block it always does.

Drafts have slots of their own, in which a step keeps the state before each of them. Once it is
known how many are right, the state behind the last of these becomes the sequence's again. The other
exact way, one copy before the step and the accepted tokens computed again, takes fewer slots, but
computes all layers twice for what was right, and by chunks what plain steps compute one by one.
"""

import math
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from workers.model.layout.state_plan import SlotCopy

TRASH = 0
# Tokens of a chunk of the delta rule; see workers/model/layout/slot_plan.py.
CHUNK = 64
# Of a long prompt, a snapshot is kept behind as many tokens, for prompts that leave it half-way.
SPACING = 2048


class Kept(NamedTuple):
    """A slot that a step under way gives a copy of a state behind `position` tokens.

    Where it `replaces`, the sequence's last such copy is dropped for it.
    """

    position: int
    slot: int
    replaces: bool


@dataclass(slots=True, eq=False)
class StateTable:
    """What one sequence holds of the slots; `slot` is trash until it has begun.

    `branch` is how many of its tokens lay in known blocks when it was admitted: a text that others
    have begun with, and may again. `answer_uid` names the block of its newest snapshot that
    replaces the one before. `drafted` are the slots that a step under way gives the states before
    its drafts, by how many tokens lie before them.
    """

    branch: int = 0
    slot: int = TRASH
    kept: list[Kept] = field(default_factory=list)
    answer_uid: int | None = None
    drafted: dict[int, int] = field(default_factory=dict)

    def kept_within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return position and slot of each copy to be made of states behind tokens after `start`,
        up to `stop`, in their order.
        """
        return sorted((at, slot) for at, slot in self.copies.items() if start < at <= stop)

    @property
    def copies(self) -> dict[int, int]:
        """The slots of all copies, by position."""
        return {kept.position: kept.slot for kept in self.kept} | self.drafted


class StateManager:
    """The owner of all slots.

    `max_running` of them are never out of reach of sequences; the last `num_for_drafts` are for
    states that wrong drafts are taken back to, and for nothing else.
    """

    def __init__(
        self, num_slots: int, max_running: int, block_size: int, num_for_drafts: int = 0
    ) -> None:
        assert num_slots - num_for_drafts > max_running > 0
        self.num_slots = num_slots - num_for_drafts - 1
        self.interval = math.lcm(CHUNK, block_size)
        self._block_size = block_size
        self._most_kept = self.num_slots - max_running
        # Sorted: sequences take from the front, so that theirs are neighbours, snapshots from the
        # back.
        self._blank = list(range(1, self.num_slots + 1))
        self._for_drafts = list(range(self.num_slots + 1, num_slots))
        # By the uid of the block that ends there, the one unused for longest first.
        self._snapshots: OrderedDict[int, int] = OrderedDict()
        self._num_kept = 0
        self._copies: list[SlotCopy] = []
        self.num_hits = 0

    @property
    def num_free(self) -> int:
        """How many slots are no sequence's: blank, or a snapshot's that would make room."""
        return len(self._blank) + len(self._snapshots)

    @property
    def num_snapshots(self) -> int:
        return len(self._snapshots)

    @property
    def num_for_drafts(self) -> int:
        """How many drafts the next step can take back."""
        return len(self._for_drafts)

    def covered(self, uids: list[int]) -> int:
        """Return how many of these blocks, the first of a text, a snapshot can stand in for."""
        every = self.interval // self._block_size
        ends = range(len(uids) // every * every, 0, -every)
        return next((count for count in ends if uids[count - 1] in self._snapshots), 0)

    def begin(self, state: StateTable, uids: list[int]) -> None:
        """Give a sequence its slot, if it has none: empty, or with the snapshot behind the known
        blocks it begins with.
        """
        if state.slot != TRASH:
            return
        source = self._snapshots[uids[-1]] if uids else None
        if uids:
            self._snapshots.move_to_end(uids[-1])
            self.num_hits += 1
        slot = self._blank.pop(0) if self._blank else self._evict()
        assert slot is not None, "more sequences run than there are slots for"
        state.slot = slot
        if slot != source:  # else it was the only one left to evict, and lies where it is needed
            self._copies.append(SlotCopy(source, slot))

    def take_copies(self) -> tuple[SlotCopy, ...]:
        """Return the copies to be made before the next step, in their order."""
        copies, self._copies = tuple(self._copies), []
        return copies

    def plan_snapshots(self, state: StateTable, start: int, stop: int, num_known: int) -> None:
        """Let a step that computes tokens `start:stop` of `num_known` keep copies of the states on
        its way, as far as there are slots.
        """
        for position in self._wanted(state, start, stop, num_known):
            if self._num_kept < self._most_kept:
                slot = self._blank.pop() if self._blank else self._evict()
                if slot is not None:
                    self._num_kept += 1
                    state.kept.append(Kept(position, slot, replaces=position >= num_known))

    def plan_drafts(self, state: StateTable, start: int, stop: int) -> None:
        """Let a step keep the states before the drafts at `start:stop` of a sequence."""
        kept = state.copies
        for position in range(start, stop):
            if position not in kept:  # else there is a snapshot to go back to
                state.drafted[position] = self._for_drafts.pop()

    def settle_drafts(self, state: StateTable, position: int, *, goes_back: bool) -> None:
        """Leave a state as it was behind `position` tokens: what came after were wrong drafts, if
        it `goes_back`.
        """
        if goes_back:
            self._copies.append(SlotCopy(state.copies[position], state.slot))
        self._drop([kept for kept in state.kept if kept.position > position])
        state.kept = [kept for kept in state.kept if kept.position <= position]
        self._drop_drafted(state)

    def publish(self, state: StateTable, uids: list[int]) -> None:
        """Make copies findable whose blocks are; `uids` are those of the sequence's full blocks."""
        known = len(uids) * self._block_size
        for kept in state.kept:
            if kept.position <= known:
                self._publish(state, kept, uids[kept.position // self._block_size - 1])
        state.kept = [kept for kept in state.kept if kept.position > known]

    def free(self, state: StateTable) -> None:
        """Give up all a sequence holds; its snapshots stay."""
        if state.slot != TRASH:
            self._give_back(state.slot)
        self._drop(state.kept)
        self._drop_drafted(state)
        state.slot, state.kept = TRASH, []

    def forget(self, uid: int) -> None:
        """Drop the snapshot behind a block, if there is one: the block is gone."""
        slot = self._snapshots.pop(uid, None)
        if slot is not None:
            self._give_back(slot)

    def check_integrity(self, states: Iterable[StateTable], known_uids: set[int]) -> None:
        """Raise AssertionError unless these tables, and blocks of these uids, explain all slots."""
        states = list(states)
        kept = [kept.slot for state in states for kept in state.kept]
        own = [state.slot for state in states if state.slot != TRASH]
        slots = [*self._blank, *own, *kept, *self._snapshots.values()]
        assert sorted(slots) == list(range(1, self.num_slots + 1)), "a slot is lost or has two uses"
        assert self._blank == sorted(self._blank)
        drafted = [slot for state in states for slot in state.drafted.values()]
        own = sorted([*self._for_drafts, *drafted])
        assert own == list(range(self.num_slots + 1, self.num_slots + 1 + len(own)))
        assert len(kept) == self._num_kept <= self._most_kept
        assert self._snapshots.keys() <= known_uids, "a snapshot outlives its block"
        assert all(state.slot != TRASH or not state.kept for state in states)

    def _wanted(self, state: StateTable, start: int, stop: int, num_known: int) -> Iterator[int]:
        """Yield the positions of the snapshots worth keeping: below the end of what is known, so
        that the same tokens again find it, and where an answer has come to.
        """
        last = (num_known - 1) // self.interval * self.interval
        branch = state.branch // self.interval * self.interval
        first = (start // self.interval + 1) * self.interval
        for position in range(first, stop + 1, self.interval):
            is_spaced = position // SPACING > (position - self.interval) // SPACING
            if position >= last or position == branch or is_spaced:
                yield position

    def _publish(self, state: StateTable, kept: Kept, uid: int) -> None:
        if uid in self._snapshots:  # a twin's, computed at the same time
            self._snapshots.move_to_end(uid)
            self._give_back(kept.slot)
        else:
            self._snapshots[uid] = kept.slot
        self._num_kept -= 1
        if kept.replaces:
            if state.answer_uid is not None and state.answer_uid != uid:
                self.forget(state.answer_uid)
            state.answer_uid = uid

    def _drop(self, copies: list[Kept]) -> None:
        for kept in copies:
            self._give_back(kept.slot)
        self._num_kept -= len(copies)

    def _drop_drafted(self, state: StateTable) -> None:
        self._for_drafts += state.drafted.values()
        state.drafted.clear()

    def _evict(self) -> int | None:
        """Return the slot of the snapshot unused for longest, which is forgotten."""
        return self._snapshots.popitem(last=False)[1] if self._snapshots else None

    def _give_back(self, slot: int) -> None:
        insort(self._blank, slot)
