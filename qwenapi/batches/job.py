"""BatchJob: one batch from where it stopped to its end, in the process that holds its lease.

The lease is the lock on its output, which the kernel gives to one process and takes from it when it
dies; the lines of the two outputs are the truth of what was answered. So whoever takes over goes on
there, and no line has two answers. Knows the store and a way to ask; refuses to know what answers.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import gevent
from gevent.lock import BoundedSemaphore

from qwenapi.batches.files import BadBatch, BatchInput, BatchOutput, OutputBusy
from qwenapi.batches.line import BatchLine, BatchResponse, render_line
from qwenapi.batches.store import BatchStore
from qwenapi.batches.values import RequestBatch, StoredFile
from qwenapi.greenlets import in_thread

LOOK_SECONDS = 0.5
# While others wait for an engine; most of them wait for its next step only.
WAIT_SECONDS = 0.05
# Lines read ahead of being asked, and those without an answer that are written at once.
AHEAD, EXPIRED_AT_ONCE = 16, 1000
NOT_JSON = {"code": "not_json", "message": "The address did not answer with JSON."}
UNAUTHORIZED = 401
LOCKED_OUT = {
    "code": "key_not_in_force",
    "message": "The key that began the batch is disabled, expired or gone.",
    "param": None,
    "line": None,
}
EXPIRED = {"code": "batch_expired", "message": "The batch's time was over before this line's turn."}


class Answer(NamedTuple):
    """What was answered to a line; `retry_after`: it was not, and may be asked again so much later.

    The raw body is JSON, unless the address is one that streams or says something else.
    """

    status: int
    request_id: str
    body: bytes
    retry_after: float | None = None


class Asking(NamedTuple):
    """How to have lines answered. `ask` takes a key's id, an address and a body; `may_begin` says
    whether a line may, `is_stopping` that this process takes no more work. A line longer than
    `max_line_bytes` no interface would take.
    """

    ask: Callable[[str, BatchLine], Answer]
    may_begin: Callable[[], bool]
    is_stopping: Callable[[], bool]
    concurrency: int
    max_line_bytes: int


class LinesAhead:
    """Lines for the workers of a job, read in a thread: to pass over many takes seconds."""

    def __init__(self, lines: Iterator[BatchLine]) -> None:
        self._lines = lines
        self._ahead: deque[BatchLine] = deque()
        self._lock = BoundedSemaphore()

    def next(self) -> BatchLine | None:
        """Return the next line, None after the last."""
        with self._lock:
            if not self._ahead:
                self._ahead.extend(in_thread(lambda: list(islice(self._lines, AHEAD))))
            return self._ahead.popleft() if self._ahead else None


class BatchJob:
    """Made only with the lease; `run` returns with the batch over, or this process stopping."""

    def __init__(
        self,
        store: BatchStore,
        batch: RequestBatch,
        asking: Asking,
        output: BatchOutput,
        refused: BatchOutput,
    ) -> None:
        self._store = store
        self._batch = batch
        self._asking = asking
        self._output = output
        self._refused = refused
        self._is_locked_out = False

    @classmethod
    def lease(cls, store: BatchStore, listed: RequestBatch, asking: Asking) -> "BatchJob | None":
        """Return the job of a batch that nobody runs and that is not over, else None."""
        with ExitStack() as opened:
            try:
                output = _open(store, listed.output_file_id)
            except OutputBusy:
                return None
            opened.callback(output.close)
            batch = store.batch(listed.tenant, listed.id)  # it may have ended meanwhile
            if not batch.is_open:
                return None
            refused = _open(store, batch.error_file_id)
            opened.pop_all()
            return cls(store, batch, asking, output, refused)

    def run(self) -> None:
        """Do what is left."""
        try:
            if (asked := self._validated()) is not None:
                self._answer_all(asked)
        finally:
            self._refused.close()
            self._output.close()

    def _validated(self) -> BatchInput | None:
        """Return the input, or None where it is unfit and the batch has failed."""
        path, url = self._store.path(self._batch.input_file_id), self._batch.endpoint
        most = self._asking.max_line_bytes
        try:
            asked = in_thread(lambda: BatchInput(path, url, most))
            if not asked.ids:
                raise BadBatch(path, "The file has no lines.")
        except BadBatch as bad:
            fault = {"code": "invalid_line", "message": bad.what, "param": None, "line": bad.line}
            self._change(lambda batch: replace(batch, status="failed", errors=(fault,)))
            return None
        total = len(asked.ids)

        def begin(batch: RequestBatch) -> RequestBatch:
            is_new = batch.status == "validating"
            return replace(batch, total=total, status="in_progress" if is_new else batch.status)

        self._change(begin)
        return asked

    def _answer_all(self, asked: BatchInput) -> None:
        left = LinesAhead(asked.without(self._done))
        workers = [gevent.spawn(self._work, left) for _ in range(self._asking.concurrency)]
        try:
            while not all(worker.ready() for worker in workers):
                gevent.joinall(workers, timeout=LOOK_SECONDS, raise_error=True)
                self._count()
        finally:
            gevent.killall(workers)  # none may write once the lease is given back
        is_whole = len(self._done) == self._batch.total
        if is_whole or self._is_late or self._is_locked_out or self._batch.status != "in_progress":
            self._finish(asked)

    def _work(self, left: LinesAhead) -> None:
        while not self._must_stop and (line := left.next()) is not None:
            if (answer := self._answer(line)) is None:
                return
            if answer.status == UNAUTHORIZED:
                self._is_locked_out = True
                return
            self._keep(line.custom_id, answer)
            gevent.sleep(0)  # an answer that waited for nothing has let nobody else run

    def _answer(self, line: BatchLine) -> Answer | None:
        """Return the answer to a line, None where the job must stop before there is one."""
        not_before = 0.0
        while not self._must_stop:
            if time.monotonic() < not_before:
                gevent.sleep(LOOK_SECONDS)
            elif not self._asking.may_begin():
                gevent.sleep(WAIT_SECONDS)
            else:
                answer = self._asking.ask(self._batch.key_id, line)
                if answer.retry_after is None:
                    return answer
                not_before = time.monotonic() + answer.retry_after
        return None

    def _keep(self, custom_id: str, answer: Answer) -> None:
        try:
            body = json.loads(answer.body)
        except ValueError:
            response = BatchResponse(answer.status, answer.request_id, None)
            line, output = render_line(custom_id, response, NOT_JSON), self._refused
        else:
            response = BatchResponse(answer.status, answer.request_id, body)
            output = self._output if 200 <= answer.status < 300 else self._refused
            line = render_line(custom_id, response)
        output.append(line)
        output.done.add(custom_id)

    @property
    def _is_late(self) -> bool:
        return time.time() >= self._batch.expires_at

    @property
    def _must_stop(self) -> bool:
        is_wanted = self._batch.status == "in_progress" and not self._is_late
        return not is_wanted or self._is_locked_out or self._asking.is_stopping()

    @property
    def _done(self) -> set[str]:
        return self._output.done | self._refused.done

    def _count(self) -> None:
        """Tell the store how far it is, and hear whether it is still wanted."""
        completed, failed = len(self._output.done), len(self._refused.done)
        self._batch = self._store.update(
            self._batch.tenant,
            self._batch.id,
            lambda batch: replace(batch, completed=completed, failed=failed),
            is_durable=False,
        )

    def _finish(self, asked: BatchInput) -> None:
        """List the outputs and end; what was too late for an answer stands among the errors."""
        is_whole = len(self._done) == self._batch.total

        def finalize(batch: RequestBatch) -> RequestBatch:
            if batch.status != "in_progress":
                return batch
            if self._is_locked_out:
                return replace(batch, status="finalizing", ending="failed", errors=(LOCKED_OUT,))
            return replace(
                batch, status="finalizing", ending="completed" if is_whole else "expired"
            )

        self._change(finalize)
        ending = "cancelled" if self._batch.status == "cancelling" else self._batch.ending
        if ending == "expired":
            self._expire(asked.without(self._done))
        self._count()
        outputs = [file for file in map(self._stored, ("output", "error")) if file.num_bytes]
        names = {file.id for file in outputs}
        self._change(
            lambda batch: replace(
                batch,
                status=ending,
                has_output=batch.output_file_id in names,
                has_errors=batch.error_file_id in names,
            ),
            outputs,
        )

    def _expire(self, left: Iterator[BatchLine]) -> None:
        def write_some() -> list[str]:
            ids = [line.custom_id for line in islice(left, EXPIRED_AT_ONCE)]
            self._refused.append(b"".join(render_line(one, None, EXPIRED) for one in ids))
            return ids

        while ids := in_thread(write_some):
            self._refused.done.update(ids)

    def _stored(self, kind: str) -> StoredFile:
        """Return an output as a file of the tenant's, once all of it is on the disk."""
        batch = self._batch
        file_id = batch.output_file_id if kind == "output" else batch.error_file_id
        output = self._output if kind == "output" else self._refused
        return StoredFile(
            id=file_id,
            tenant=batch.tenant,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            num_bytes=in_thread(output.flush),
            created_at=int(time.time()),
        )

    def _change(
        self,
        change: Callable[[RequestBatch], RequestBatch],
        outputs: Sequence[StoredFile] = (),
    ) -> None:
        self._batch = self._store.update(self._batch.tenant, self._batch.id, change, outputs)


def _open(store: BatchStore, file_id: str) -> BatchOutput:
    path = store.path(file_id)
    return in_thread(lambda: BatchOutput(path))
