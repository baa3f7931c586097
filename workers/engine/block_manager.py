"""BlockManager: who owns which block of the KV cache, and the prefix cache of finished ones.

Knows block ids and the tokens of full blocks. Refuses to know tensors, scheduling and requests.

The prefix cache is one exact dict, (uid of the parent's content, the block's tokens, salt) → block:
equality is decided by the tokens themselves, never by a hash alone. A uid names content, not a
place, so a reused place never aliases. Block 0 is trash, where padding is read and written.

Of a hybrid model, known blocks are of use up to the last one behind which the state is known too;
StateManager is then told of every table that begins, grows and goes, and of every block that does.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from workers.engine.state_manager import StateManager, StateTable

TRASH = 0
_ROOT_UID = 0

Key = tuple[int, tuple[int, ...], str]


@dataclass(slots=True, eq=False)
class Block:
    """One place in the cache; `key` is set while its content can be found again."""

    id: int
    num_users: int = 0
    key: Key | None = None
    uid: int = _ROOT_UID


@dataclass(slots=True, eq=False)
class BlockTable:
    """All that one sequence holds on the device.

    The first blocks are full and offered to others: as many as `uids`, which name their content.
    `state` is a hybrid model's.
    """

    ids: list[int] = field(default_factory=list)
    uids: list[int] = field(default_factory=list)
    state: StateTable | None = None

    @property
    def last_uid(self) -> int:
        return self.uids[-1] if self.uids else _ROOT_UID


class BlockManager:
    """The owner of all blocks."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        states: StateManager | None = None,
    ) -> None:
        assert num_blocks > 1 and block_size > 0
        self.block_size = block_size
        self.states = states
        self._enabled = enable_prefix_caching
        self._blocks = [Block(id) for id in range(num_blocks)]
        self._blank = list(range(num_blocks - 1, TRASH, -1))
        # Unused blocks with findable content, least recently used first.
        self._reusable: OrderedDict[int, None] = OrderedDict()
        self._known: dict[Key, Block] = {}
        self._next_uid = _ROOT_UID + 1
        self._unclean: list[int] = []

    @property
    def num_blocks(self) -> int:
        """The blocks sequences can have; trash is not one of them."""
        return len(self._blocks) - 1

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._reusable)

    def state_stats(self) -> dict[str, int]:
        """Return what there is of state slots, as in EngineStats: nothing for a dense model."""
        states = self.states
        if states is None:
            return {}
        return {
            "total_state_slots": states.num_slots,
            "free_state_slots": states.num_free,
            "state_snapshots": states.num_snapshots,
            "state_snapshot_hits": states.num_hits,
        }

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def match(self, token_ids: list[int], salt: str) -> BlockTable:
        """Return a table of the known blocks these tokens begin with, now used by the caller too.

        At least one token stays uncovered, because its logits have to be computed.
        """
        table = BlockTable()
        size = self.block_size
        limit = (len(token_ids) - 1) // size if self._enabled else 0
        while len(table.ids) < limit:
            start = len(table.ids) * size
            block = self._known.get((table.last_uid, tuple(token_ids[start : start + size]), salt))
            if block is None:
                break
            self._use(block)
            table.ids.append(block.id)
            table.uids.append(block.uid)
        if self.states is not None:
            table.state = StateTable(branch=len(table.ids) * size)
            self._cut(table, self.states.covered(table.uids))
        return table

    def extend(self, table: BlockTable, num_tokens: int) -> bool:
        """Give a table room for `num_tokens`; return False, unchanged, if blocks are too few."""
        missing = self.blocks_for(num_tokens) - len(table.ids)
        if missing > self.num_free:
            return False
        for _ in range(missing):
            block = self._blocks[self._take()]
            block.num_users = 1
            table.ids.append(block.id)
        if self.states is not None and table.state is not None:
            self.states.begin(table.state, table.uids)
        return True

    def publish(
        self, table: BlockTable, token_ids: list[int], num_computed: int, salt: str
    ) -> None:
        """Make newly filled blocks findable; tokens below `num_computed` are in the cache."""
        assert num_computed <= len(token_ids)
        if not self._enabled:
            return
        size = self.block_size
        for index in range(len(table.uids), num_computed // size):
            tokens = tuple(token_ids[index * size : (index + 1) * size])
            key = (table.last_uid, tokens, salt)
            known = self._known.get(key)
            if known is None:
                known = self._blocks[table.ids[index]]
                self._name(known, key)
            # A twin computed at the same time stays unnamed and continues the known chain.
            table.uids.append(known.uid)
        if self.states is not None and table.state is not None:
            self.states.publish(table.state, table.uids)

    def plan_snapshots(self, table: BlockTable, start: int, stop: int, num_known: int) -> None:
        """Keep copies of the states behind some of the tokens `start:stop` of a step."""
        if self.states is not None and table.state is not None and self._enabled:
            self.states.plan_snapshots(table.state, start, stop, num_known)

    def plan_drafts(self, table: BlockTable, start: int, stop: int) -> None:
        """Keep what is needed to go back from drafts at `start:stop` of a step."""
        if self.states is not None and table.state is not None:
            self.states.plan_drafts(table.state, start, stop)

    def settle_drafts(self, table: BlockTable, position: int, *, goes_back: bool) -> None:
        """Leave states as they were behind `position` tokens; only wrong drafts are behind."""
        if self.states is not None and table.state is not None:
            self.states.settle_drafts(table.state, position, goes_back=goes_back)

    def forget(self, table: BlockTable) -> None:
        """Offer a table's blocks to nobody any more; whoever has them keeps them."""
        for block in (self._blocks[id] for id in table.ids):
            if block.key is not None:
                self._unname(block)
        if self.states is not None:
            for uid in table.uids:  # a twin's block may have one too
                self.states.forget(uid)

    def free(self, table: BlockTable, *, is_clean: bool = True) -> None:
        """Give up a table's blocks, tail first, so that prefixes survive longest.

        If not known to be clean, what no longer has a user or a name has to be cleared.
        """
        self._cut(table, 0, is_clean=is_clean)
        if self.states is not None and table.state is not None:
            self.states.free(table.state)
            table.state = None

    def take_unclean(self) -> list[int]:
        """Return the blocks to be cleared before anything is written to them, each once."""
        unclean, self._unclean = self._unclean, []
        return unclean

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Raise AssertionError unless exactly these tables explain every block's state."""
        users = [0] * len(self._blocks)
        for table in tables:
            assert len(set(table.ids)) == len(table.ids), "a block occurs twice in one table"
            for id in table.ids:
                users[id] += 1
        assert users[TRASH] == 0 and self._blocks[TRASH].key is None, "trash is in use"
        blank = set(self._blank)
        assert len(blank) == len(self._blank), "a block is blank twice"
        for block in self._blocks[1:]:
            assert block.num_users == users[block.id], f"block {block.id} counts wrong users"
            assert (block.id in blank) == (block.num_users == 0 and block.key is None)
            assert (block.id in self._reusable) == (block.num_users == 0 and block.key is not None)
            assert block.key is None or self._known[block.key] is block
        assert len(self._known) == sum(block.key is not None for block in self._blocks)
        if self.states is not None:
            states = [table.state for table in tables if table.state is not None]
            self.states.check_integrity(states, {block.uid for block in self._known.values()})

    def _cut(self, table: BlockTable, num_blocks: int, *, is_clean: bool = True) -> None:
        """Give up a table's blocks behind the first `num_blocks`."""
        for id in reversed(table.ids[num_blocks:]):
            block = self._blocks[id]
            block.num_users -= 1
            if block.num_users == 0:
                if block.key is None:
                    self._blank.append(id)
                    self._unclean += () if is_clean else (id,)
                else:
                    self._reusable[id] = None
        del table.ids[num_blocks:], table.uids[num_blocks:]

    def _use(self, block: Block) -> None:
        if block.num_users == 0:
            del self._reusable[block.id]
        block.num_users += 1

    def _take(self) -> int:
        """Return a blank block, forgetting the content unused for longest if there is none."""
        if self._blank:
            return self._blank.pop()
        id, _ = self._reusable.popitem(last=False)
        block = self._blocks[id]
        self._unname(block)
        return id

    def _unname(self, block: Block) -> None:
        assert block.key is not None
        del self._known[block.key]
        block.key = None
        if self.states is not None:
            self.states.forget(block.uid)

    def _name(self, block: Block, key: Key) -> None:
        block.key = key
        block.uid = self._next_uid
        self._next_uid += 1
        self._known[key] = block
