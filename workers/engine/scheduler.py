"""Scheduler: which sequences compute how many tokens in the next step.

Knows sequences, one token budget and the block manager. Refuses to know tensors and sampling.

    waiting ──admit──► running ──finish──► gone        a step: decodes, then prompts under way, then
       ▲                  │                            new sequences, all from one token budget
       └────preempt───────┘ (blocks freed, recomputed later)

Rows come in the order (priority, arrival, choice); the last of that order is preempted first. Of
those who wait within a priority, the tenant that has been given least is admitted first. A step
that preempted admits nobody, so the blocks just taken are not given away again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice, zip_longest

from workers.engine.batch import Batch, Row
from workers.engine.block_manager import BlockManager, BlockTable
from workers.engine.queue_deadlines import QueueDeadlines
from workers.engine.sequence import Sequence, SequenceStatus
from workers.engine.sequence_group import SequenceGroup
from workers.engine.speculation import NO_DRAFTS, Drafts, Propose, Speculation, propose_by_ngrams
from workers.engine.state_manager import CHUNK
from workers.engine.step_budget import StepBound, StepBudget
from workers.engine.step_plan import StepPlan
from workers.engine.waiting_queue import WaitingQueue, by_order
from workers.engine_core import Key
from workers.fairness import TenantCounters
from workers.wire.protocol import Generate

# Blocks kept free at admission, so that running rows can grow a little before anyone is preempted.
_WATERMARK = 0.01


class Scheduler:
    """The owner of every unfinished sequence."""

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_speculative_tokens: int = 0,
        propose: Propose = propose_by_ngrams,
        step_budget: StepBudget | None = None,
    ) -> None:
        assert 0 < max_num_seqs <= max_num_batched_tokens
        self.num_preemptions = 0
        self.speculation = Speculation(blocks, num_speculative_tokens, propose)
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._budget = max_num_batched_tokens
        self._step_budget = step_budget or StepBudget(max_num_batched_tokens, 0)
        self._watermark = int(_WATERMARK * blocks.num_blocks)
        self._waiting = WaitingQueue()
        self._tenants = TenantCounters()
        self._running: list[Sequence] = []
        self._groups: dict[Key, SequenceGroup] = {}
        self._deadlines = QueueDeadlines()
        # Started requests by the name under which callers limit them, Generate.group.
        self._num_started: Counter[str] = Counter()
        # Rows promised to started requests: all choices of one are admitted together or not at all.
        self._num_promised_rows = 0
        # Whether who might have been admitted last found no blocks.
        self._lacks_room = False

    @property
    def has_work(self) -> bool:
        return bool(self._groups)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + sum(len(group.held) for group in self._groups.values())

    def add(self, group: SequenceGroup, now: float) -> None:
        """Queue the unfinished sequences of a request."""
        self._groups[group.request.key] = group
        self._tenants.enter(group.request.generate.tenant)
        self._deadlines.add(group, now, len(self._groups))
        assert group.leader is not None
        self._waiting.add(group.leader)

    def expire(self, now: float) -> list[SequenceGroup]:
        """Drop and return the requests that have waited too long without ever running."""
        expired = self._deadlines.take_expired(now)
        for group in expired:
            self.abort(group, group.request.generate.choices)
        return expired

    def abort(
        self, group: SequenceGroup, choices: Collection[int], *, is_damaged: bool = False
    ) -> None:
        """End choices of a request and free what they hold; without any left it is forgotten.

        Of damaged ones nothing is kept in the cache. Of none is it known what their last step
        writes there: a number that is none would spoil whoever has the place next.
        """
        for sequence in group.sequences:
            if sequence.choice in choices and not sequence.is_finished:
                if is_damaged:
                    self._blocks.forget(sequence.table)
                self._end(sequence, is_clean=False)
        self._replace_leader(group)

    @property
    def speculates(self) -> bool:
        """Whether few enough run that drafts are worth their tokens."""
        return self.speculation.is_worth_it(self.num_running)

    def schedule(self) -> Batch:
        """Choose the rows of the next step, give them their blocks and count them as computed."""
        blocks = self._blocks
        states = blocks.states
        cut, num_drafts = (1, self._budget) if states is None else (CHUNK, states.num_for_drafts)
        bound = self._bound()
        plan = StepPlan(self._budget, cut, self._is_scoring, num_drafts, bound.num_tokens)
        may_guess = self.speculates  # else a step may be under way, and sequences not known whole
        started = self._fill(plan, is_turn=bound.is_turn)
        if bound.is_turn and not plan.rows:  # no prompt found room
            plan.num_left = self._budget
            started = self._fill(plan)
        may_guess = may_guess and self.speculates
        drafts = self.speculation.draft(plan, may_guess=may_guess)
        rows = tuple(
            self._row(sequence, count, drafts.get(sequence, NO_DRAFTS))
            for sequence, count in plan.rows.items()
        )
        for row in rows:
            sequence = row.sequence
            if states is not None:
                blocks.plan_snapshots(sequence.table, row.start, row.stop, len(sequence.token_ids))
                blocks.plan_drafts(sequence.table, row.stop - len(row.drafts), row.stop)
            sequence.num_computed += row.num_tokens
            sequence.num_awaited += row.num_samples > 0
        copies = states.take_copies() if states is not None else ()
        return Batch(rows, tuple(started), copies)

    def update(self, row: Row, sampled: Collection[int]) -> int:
        """Take what a row's step sampled, and return how many of these tokens now follow.

        Drafts count as long as they equal what was sampled in their place. So a sequence is the
        same with and without them, up to what the rounding of larger batches changes.
        """
        sequence, generate = row.sequence, row.sequence.request.generate
        if sequence.is_finished:  # while the step was under way
            return 0
        sequence.num_awaited -= row.num_samples > 0
        num_taken = 0
        for token_id, draft in zip_longest(sampled, row.drafts):
            sequence.append(token_id)
            num_taken += 1
            if sequence.finish_reason is not None or sequence.has_failed or token_id != draft:
                break
        if row.drafts:
            self.speculation.judge(row, num_taken - 1)
        self._tenants.charge(generate.tenant, given=num_taken)
        self._blocks.publish(
            sequence.table, sequence.content_ids, sequence.num_computed, generate.cache_salt
        )
        group = self._group_of(sequence)
        if sequence is group.leader and sequence.num_computed >= sequence.num_prompt_tokens:
            self._release_siblings(group)
        if sequence.finish_reason is not None:
            self._end(sequence)
            self._replace_leader(group)
        return num_taken

    def check_integrity(self) -> None:
        """Raise AssertionError if sequences, rows and blocks do not add up."""
        groups = self._groups.values()
        sequences = [sequence for group in groups for sequence in group.sequences]
        self._blocks.check_integrity([sequence.table for sequence in sequences])
        running = [s for s in sequences if s.status is SequenceStatus.RUNNING]
        waiting = [s for s in sequences if s.status is SequenceStatus.WAITING]
        assert sorted(running, key=by_order) == self._running
        assert sorted(waiting, key=by_order) == list(self._waiting)
        started = [group for group in groups if group.has_started]
        assert self._num_promised_rows == sum(group.num_unfinished for group in started)
        assert +self._num_started == Counter(group.request.generate.group for group in started)
        assert all(not s.table.ids for s in sequences if s.status is not SequenceStatus.RUNNING)

    def _bound(self) -> StepBound:
        """Return what the next step may compute."""
        if not self._step_budget.is_bounded:
            return StepBound(self._budget)
        uncomputed = [sequence.num_uncomputed for sequence in self._running]
        num_rows = 0 if self._lacks_room else self._max_num_seqs - len(uncomputed)
        groups = (self._group_of(sequence) for sequence in islice(self._waiting, num_rows))
        num_new = sum(g.has_started or not self._is_limited(g.request.generate) for g in groups)
        num_left = [count for count in uncomputed if count > 1]
        return self._step_budget.bound(len(uncomputed) - len(num_left), num_new, num_left)

    def _fill(self, plan: StepPlan, *, is_turn: bool = False) -> list[SequenceGroup]:
        """Choose the rows of a step, in a turn of prompts alone; return what starts."""
        before = self.num_preemptions
        self._continue_running(plan, is_turn=is_turn)
        started = self._admit(plan) if self.num_preemptions == before else []
        self._use_up(plan)
        return started

    def _continue_running(self, plan: StepPlan, *, is_turn: bool) -> None:
        """Plan rows that run already: decodes first, so that a long prompt never stalls them."""
        ready = [sequence for sequence in self._running if not sequence.is_blocked]
        decodes = [sequence for sequence in ready if sequence.num_uncomputed == 1]
        prefills = [sequence for sequence in ready if sequence.num_uncomputed > 1]
        for sequence in prefills if is_turn else decodes + prefills:
            num_tokens = plan.share(sequence)
            may_run = num_tokens > 0 and sequence.status is SequenceStatus.RUNNING
            if may_run and self._make_room(sequence, num_tokens, plan):
                plan.add(sequence, num_tokens)

    def _is_scoring(self, sequence: Sequence) -> bool:
        return self._group_of(sequence).is_scoring(sequence)

    def _row(self, sequence: Sequence, num_tokens: int, drafts: Drafts) -> Row:
        start, num_uncomputed = sequence.num_computed, sequence.num_uncomputed
        scored = range(0)
        if num_uncomputed > 1:
            scored = self._group_of(sequence).scored_by(sequence, start, num_tokens)
        if num_tokens < num_uncomputed:
            return Row(sequence, start, num_tokens, num_samples=0, scored=scored)
        num_drafts = len(drafts.token_ids)
        return Row(sequence, start, num_tokens + num_drafts, 1 + num_drafts, *drafts, scored)

    def _make_room(self, sequence: Sequence, num_tokens: int, plan: StepPlan) -> bool:
        """Extend a table, preempting from the end; return False if that hit the sequence itself."""
        while not self._blocks.extend(sequence.table, sequence.num_computed + num_tokens):
            victim = self._running[-1]
            self._preempt(victim)
            plan.discard(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Send a sequence back; its full blocks stay findable, so little is computed again."""
        self._running.remove(sequence)
        self._blocks.free(sequence.table)
        sequence.num_computed = 0
        sequence.status = SequenceStatus.WAITING
        self._waiting.add(sequence)
        self.num_preemptions += 1

    def _admit(self, plan: StepPlan) -> list[SequenceGroup]:
        """Let sequences run while rows, budget and blocks last; return what starts."""
        started: list[SequenceGroup] = []
        if plan.num_left == 0 or len(self._running) >= self._max_num_seqs:
            return started
        self._lacks_room = False
        owed = sum(self._blocks_owed(sequence) for sequence in self._running)
        for sequence in self._in_turn():
            group = self._group_of(sequence)
            if plan.num_left == 0 or len(self._running) >= self._max_num_seqs:
                break
            if not group.has_started:
                if self._is_limited(group.request.generate):
                    continue
                if not self._has_rows(group):
                    break
            if plan.share(sequence) == 0:
                continue
            table = self._find_room(sequence, owed)
            if table is None:
                self._lacks_room = True
                break
            if not group.has_started:
                self._start(group, len(table.ids) * self._blocks.block_size)
                started.append(group)
            self._run(sequence, table, plan)
            owed += self._blocks_owed(sequence)
        return started

    def _use_up(self, plan: StepPlan) -> None:
        """Give long prompts what they had left to others, and nobody took."""
        for sequence in [s for s in plan.long_prompts if s in plan.rows]:  # not preempted since
            num_tokens = plan.rest(sequence)
            end = sequence.num_computed + plan.rows[sequence] + num_tokens
            if num_tokens > 0 and self._blocks.extend(sequence.table, end):
                plan.add(sequence, num_tokens)

    def _in_turn(self) -> Iterator[Sequence]:
        """Yield who waits. Started requests come first: rows are promised to them, so nobody who
        waits for rows may stand in their way, whatever its priority. Then those in the middle of
        their answer: their callers had their turn, on an engine that was lost.
        """
        waiting = [(sequence, self._group_of(sequence).has_started) for sequence in self._waiting]
        yield from (sequence for sequence, has_started in waiting if has_started)
        others = [sequence for sequence, has_started in waiting if not has_started]
        yield from (sequence for sequence in others if sequence.request.is_resumed)
        new = [sequence for sequence in others if not sequence.request.is_resumed]
        yield from self._tenants.in_turn(new, lambda sequence: sequence.request.generate)

    def _group_of(self, sequence: Sequence) -> SequenceGroup:
        return self._groups[sequence.request.key]

    def _is_limited(self, generate: Generate) -> bool:
        """Whether as many requests of its name run as its caller allows."""
        return 0 < generate.max_running <= self._num_started[generate.group]

    def _has_rows(self, group: SequenceGroup) -> bool:
        """Whether all choices find a row; a request of more choices than rows runs when alone."""
        promised = self._num_promised_rows
        return promised == 0 or promised + group.num_unfinished <= self._max_num_seqs

    def _blocks_owed(self, sequence: Sequence) -> int:
        """The blocks a running sequence still needs for the tokens it already has."""
        needed = self._blocks.blocks_for(len(sequence.token_ids)) - len(sequence.table.ids)
        return max(0, needed)  # drafts may have taken one more

    def _find_room(self, sequence: Sequence, owed: int) -> BlockTable | None:
        """Return a table of known blocks if the rest fits beside what others are owed.

        Who has to compute its whole prompt gets a table of none.
        """
        blocks = self._blocks
        ids = sequence.content_ids
        ids = ids[:1] if self._is_scoring(sequence) else ids
        table = blocks.match(ids, sequence.request.generate.cache_salt)
        needed = blocks.blocks_for(len(sequence.token_ids)) - len(table.ids)
        reserve = owed + (self._watermark if self._running else 0)
        if needed + reserve <= blocks.num_free:
            return table
        blocks.free(table)
        return None

    def _start(self, group: SequenceGroup, num_cached: int) -> None:
        request = group.request
        group.cached_tokens = min(num_cached, len(request.prompt_ids))
        num_read = len(request.prompt_ids) - group.cached_tokens
        self._tenants.charge(request.generate.tenant, read=num_read)
        self._num_started[request.generate.group] += 1
        self._num_promised_rows += group.num_unfinished

    def _run(self, sequence: Sequence, table: BlockTable, plan: StepPlan) -> None:
        self._waiting.remove(sequence)
        sequence.table = table
        sequence.num_computed = len(table.ids) * self._blocks.block_size
        sequence.status = SequenceStatus.RUNNING
        insort(self._running, sequence, key=by_order)
        num_tokens = plan.share(sequence)
        has_room = self._blocks.extend(table, sequence.num_computed + num_tokens)
        assert has_room
        plan.add(sequence, num_tokens)

    def _release_siblings(self, group: SequenceGroup) -> None:
        for sibling in group.held:
            sibling.status = SequenceStatus.WAITING
            self._waiting.add(sibling)

    def _replace_leader(self, group: SequenceGroup) -> None:
        """Let another sequence compute the prompt if the leader ended before it was in the cache:
        aborted, or preempted while a step under way sampled its last token.
        """
        if group.held and group.leader is not None and group.leader.is_finished:
            group.choose_leader()
            self._waiting.add(group.leader)

    def _end(self, sequence: Sequence, *, is_clean: bool = True) -> None:
        """Take a sequence out of wherever it is; with its last one, the request is gone."""
        group = self._group_of(sequence)
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self._waiting.remove(sequence)
        self._blocks.free(sequence.table, is_clean=is_clean)
        sequence.status = SequenceStatus.FINISHED
        sequence.grammar = None
        self._num_promised_rows -= group.has_started
        if group.is_finished:
            generate = group.request.generate
            del self._groups[group.request.key]
            self._tenants.leave(generate.tenant)
            self._num_started[generate.group] -= group.has_started
