"""CUDA graphs of the model's forward pass, one for each bucket of sizes, recorded when needed.

A step's tensors are copied into memory that all graphs read. What a graph computes from them, from
positions to logits, it finds on the device; what it fixes follows from its bucket alone.

    3 rows in the bucket of 4:   token ids │a│b│c│·│   starts │0│1│2│3│3│

The last token is padding, and writes to the trash block; the last row has no tokens, and so changes
no state. Copies of states are made before a graph begins. Refuses to know sequences and sampling.

Checked on a CPU with a stand-in for the recording, which calls again what it was given. Not
checked: any GPU, and so no recording. tests/gpu/test_graphs.py is for one.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from workers.errors import WorkerError
from workers.model.decoder import Decoder
from workers.model.layout.flat_batch import FlatBatch

_logger = logging.getLogger(__name__)

# Of batches in which every row has one token, and of tokens of all others.
_DECODE_ROWS = (*range(1, 9), *range(10, 17, 2), *range(24, 257, 8))
_MIXED_TOKENS = (64, 128, *range(256, 2049, 256))
_MOST_SAMPLES = 256

Computation = Callable[[], Tensor]


class Capture(Protocol):
    """Records what a computation launches."""

    def __call__(self, compute: Computation) -> Computation:
        """Call `compute` to warm up, then record it; return what repeats it into the same tensor.

        Raise RuntimeError if it cannot be recorded.
        """


class Bucket(NamedTuple):
    """The sizes of one graph. Where `is_decode`, rows have one token each."""

    num_tokens: int
    num_rows: int
    is_decode: bool

    @classmethod
    def holding(cls, flat: FlatBatch, max_rows: int) -> "Bucket | None":
        """Return the smallest bucket a batch fits into, if there is one."""
        num_rows, num_tokens = flat.lengths.shape[0], flat.token_ids.shape[0]
        is_decode = flat.max_query == 1
        size = _fit(num_rows, _DECODE_ROWS) if is_decode else _fit(num_tokens, _MIXED_TOKENS)
        if size is None or num_rows > max_rows:
            return None
        bucket = cls(size, size if is_decode else min(size, max_rows), is_decode)
        return bucket if flat.last_tokens.shape[0] <= bucket.num_samples else None

    @property
    def num_samples(self) -> int:
        return min(self.num_tokens, _MOST_SAMPLES)


class Graphs:
    """The graphs of a decoder, whose cache is in its place for good.

    Layers on several devices have none, and nobody has any more once a recording has failed. Where
    ranks share a model that is raised: with graphs on one alone they would add up other tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_model_len: int,
        max_num_seqs: int,
        capture: Capture | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        """`is_shared`: other ranks record the same steps."""
        self._decoder, self._is_shared = decoder, is_shared
        self._max_rows = _fit(max_num_seqs, _DECODE_ROWS) or _DECODE_ROWS[-1]
        self._replays: dict[Bucket, Computation] = {}
        self._inputs: _Inputs | None = None
        self._logits: Tensor | None = None
        if set(decoder.layer_devices) == {decoder.device}:
            max_blocks = -(-max_model_len // decoder.block_size)
            has_states = decoder.slot_bytes > 0
            self._inputs = _Inputs(self._max_rows, max_blocks, has_states, decoder.device)
            self._capture = capture or CudaCapture(decoder.device)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Record the graphs of steps in which all rows decode, the largest first, so that the
        others find their memory in its place.
        """
        for size in reversed([size for size in _DECODE_ROWS if size <= self._max_rows]):
            if self._inputs is not None:
                self._record(Bucket(size, size, is_decode=True))

    @torch.inference_mode()
    def forward(self, flat: FlatBatch) -> Tensor | None:
        """Return the logits `[samples, vocabulary]`, or None if the caller has to compute them.

        They are overwritten by the next call.
        """
        bucket = Bucket.holding(flat, self._max_rows)
        if self._inputs is None or bucket is None or not self._inputs.can_hold(flat):
            return None
        if bucket not in self._replays:
            self._record(bucket)
        if (replay := self._replays.get(bucket)) is None:
            return None
        self._inputs.fill(flat, bucket)
        return replay()[: flat.last_tokens.shape[0]]

    def _record(self, bucket: Bucket) -> None:
        """Record a graph on nothing but padding: to warm up must take no state a step further."""
        assert self._inputs is not None
        self._inputs.clear()
        try:
            self._replays[bucket] = self._capture(partial(self._compute, bucket))
        except RuntimeError as error:
            if self._is_shared:
                raise WorkerError(
                    f"{bucket} could not be recorded as a CUDA graph on this rank ({error}); start"
                    " with --enforce-eager"
                ) from error
            _logger.warning(
                "no CUDA graphs from now on, and so slower steps: %s could not be recorded;"
                " with --enforce-eager none is tried",
                bucket,
                exc_info=True,
            )
            self._replays.clear()
            self._inputs = self._logits = None

    def _compute(self, bucket: Bucket) -> Tensor:
        """Compute what lies in the inputs; return logits `[bucket.num_samples, vocabulary]`."""
        assert self._inputs is not None
        flat = self._inputs.view(bucket)
        # Beyond the step's own samples lie those of earlier and larger ones.
        samples = flat.last_tokens.clamp(max=bucket.num_tokens - 1)
        logits = self._decoder.forward_flat(flat, samples)
        if self._logits is None:  # warming up: not in the memory of any graph
            self._logits = logits.new_empty((_MOST_SAMPLES, logits.shape[1]))
        # Copied, so that no graph keeps logits of its own: they are the largest tensor of many.
        return self._logits[: bucket.num_samples].copy_(logits)


class CudaCapture:
    """Records CUDA graphs, all on one stream and in one pool of memory.

    They may share it because each is done with it when it ends.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Computation) -> Computation:
        graph = torch.cuda.CUDAGraph()
        with self._aside():
            compute()
            with self._allocating(), self._recording(graph):
                output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    def _recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # Other threads may go on using CUDA.
        mode = "thread_local"
        return torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Enter the stream between the work before and after; leave it even if recording fails."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    @contextmanager
    def _allocating(self) -> Iterator[None]:
        """Leave the pool if recording fails: CUDAGraph::capture_end then raises before it does, and
        an allocator that believes in a recording never frees what it has cached.
        """
        try:
            yield
        except RuntimeError:
            with suppress(RuntimeError, AttributeError):  # it has been left; or torch has changed
                torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
                torch._C._cuda_releasePool(self._stream.device_index, self._pool)
            raise


class _Inputs:
    """What all graphs read: a batch of the largest size, of which each bucket sees the front."""

    def __init__(
        self, max_rows: int, max_blocks: int, has_states: bool, device: torch.device
    ) -> None:
        zeros = partial(torch.zeros, dtype=torch.int32, device=device)
        self._whole = FlatBatch(
            token_ids=zeros(max(_MIXED_TOKENS)),
            starts=zeros(max_rows + 1),
            lengths=zeros(max_rows),
            tables=zeros((max_rows, max_blocks)),
            last_tokens=zeros(_MOST_SAMPLES),
            slots=zeros(max_rows * has_states),
            kept=zeros(max(_MIXED_TOKENS) * has_states),
            max_query=max(_MIXED_TOKENS),
        )

    def view(self, bucket: Bucket) -> FlatBatch:
        """Return the part a bucket sees."""
        whole = self._whole
        return FlatBatch(
            whole.token_ids[: bucket.num_tokens],
            whole.starts[: bucket.num_rows + 1],
            whole.lengths[: bucket.num_rows],
            whole.tables[: bucket.num_rows],
            whole.last_tokens[: bucket.num_samples],
            whole.slots[: bucket.num_rows],
            whole.kept[: bucket.num_tokens],
            max_query=1 if bucket.is_decode else bucket.num_tokens,
        )

    def can_hold(self, flat: FlatBatch) -> bool:
        """Whether the rows' block tables are no longer than max_model_len lets them be."""
        return flat.tables.shape[1] <= self._whole.tables.shape[1]

    def clear(self) -> None:
        """Let there be no tokens but padding."""
        self._whole.starts.zero_()

    def fill(self, flat: FlatBatch, bucket: Bucket) -> None:
        """Copy a batch to the front. What is left of earlier ones behind it no row refers to."""
        whole = self._whole
        num_tokens, num_rows = flat.token_ids.shape[0], flat.lengths.shape[0]
        whole.token_ids[:num_tokens].copy_(flat.token_ids)
        whole.starts[: num_rows + 1].copy_(flat.starts)
        whole.starts[num_rows + 1 : bucket.num_rows + 1].fill_(num_tokens)
        whole.lengths[:num_rows].copy_(flat.lengths)
        whole.tables[:num_rows, : flat.tables.shape[1]].copy_(flat.tables)
        whole.last_tokens[: flat.last_tokens.shape[0]].copy_(flat.last_tokens)
        whole.slots[: flat.slots.shape[0]].copy_(flat.slots)
        whole.kept[: flat.kept.shape[0]].copy_(flat.kept)


def _fit(count: int, sizes: tuple[int, ...]) -> int | None:
    return next((size for size in sizes if size >= count), None)
