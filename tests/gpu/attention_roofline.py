"""How long attention takes, beside the time its bytes and its products alone would take.

The two ceilings are measured in the same run, by a copy and by a matrix product. Calls are replayed
from a CUDA graph, each over other pages, so that neither launches nor a warm cache are measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from workers.model.layout.paged_plan import PagedPlan, choose_splits, locate

# Qwen3-8B's, which are also Qwen3-32B's but for the number of heads.
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 64
POOL_TOKENS = 1 << 20
NUM_CALLS = 8
NUM_REPLAYS = 15


@dataclass(frozen=True)
class Work:
    """`rows` sequences of `length`, of each of which the last `tokens` attend."""

    name: str
    rows: int
    tokens: int
    length: int

    @property
    def num_bytes(self) -> int:
        """Count keys and values once, and queries and contexts."""
        kept = self.rows * self.length * NUM_KV_HEADS * HEAD_DIM * 2
        return 2 * (kept + 2 * self.rows * self.tokens * NUM_HEADS * HEAD_DIM)

    @property
    def num_operations(self) -> int:
        """Count two products with what each token sees, and no masked part."""
        seen = self.tokens * (self.length - self.tokens) + self.tokens * (self.tokens + 1) // 2
        return 4 * self.rows * seen * NUM_HEADS * HEAD_DIM


WORKS = (
    Work("decode", rows=1, tokens=1, length=1024),
    Work("decode", rows=1, tokens=1, length=8192),
    Work("decode", rows=8, tokens=1, length=8192),
    Work("decode", rows=64, tokens=1, length=1024),
    Work("decode", rows=64, tokens=1, length=8192),
    Work("prefill", rows=8, tokens=1024, length=1024),
    Work("prefill", rows=1, tokens=8192, length=8192),
    Work("chunk", rows=1, tokens=2048, length=32768),
)


def report() -> None:
    """Print one line for each work, with and without splits where splits are chosen."""
    from workers.model.kernels import paged_attention

    device = torch.device("cuda")
    bandwidth, rate = measure_bandwidth(device), measure_products(device)
    print(f"ceilings: copy {bandwidth / 1e12:.2f} TB/s, products {rate / 1e12:.0f} TFLOP/s")
    shape = (POOL_TOKENS // BLOCK_SIZE, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
    keys, values = (torch.randn(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    for work in WORKS:
        calls = [make_call(work, seed, device) for seed in range(NUM_CALLS)]
        for num_splits in sorted({1, calls[0][1].num_splits}):

            def run(num_splits: int = num_splits, calls: list = calls) -> None:
                for query, plan in calls:
                    plan = replace(plan, num_splits=num_splits)
                    paged_attention.attend(query, keys, values, plan)

            seconds = time_replays(run) / NUM_CALLS
            print(line(work, num_splits, seconds, bandwidth, rate))


def line(work: Work, num_splits: int, seconds: float, bandwidth: float, rate: float) -> str:
    floor = max(work.num_bytes / bandwidth, work.num_operations / rate)
    return (
        f"{work.name:7s} {work.rows:3d} × {work.tokens:4d} of {work.length:5d}, {num_splits:2d}"
        f" splits: {seconds * 1e6:8.1f} µs, {work.num_bytes / seconds / 1e9:5.0f} GB/s,"
        f" {work.num_operations / seconds / 1e12:5.1f} TFLOP/s, {floor / seconds:4.0%} of roofline"
    )


def make_call(work: Work, seed: int, device: torch.device) -> tuple[Tensor, PagedPlan]:
    """Return queries and a plan over pages chosen at random from the pool."""
    generator = torch.Generator().manual_seed(seed)
    width = -(-work.length // BLOCK_SIZE)
    pages = torch.randperm(POOL_TOKENS // BLOCK_SIZE, generator=generator)[: work.rows * width]
    tables = pages.view(work.rows, width).int().to(device)
    starts = (torch.arange(work.rows + 1) * work.tokens).int().to(device)
    lengths = torch.full((work.rows,), work.length, dtype=torch.int32, device=device)
    num_tokens = work.rows * work.tokens
    _, slots = locate(starts, lengths, tables, num_tokens, BLOCK_SIZE)
    is_single = work.tokens == 1
    splits = choose_splits(work.rows, NUM_KV_HEADS, work.length, device) if is_single else 1
    query = torch.randn(num_tokens, NUM_HEADS, HEAD_DIM, generator=generator) * HEAD_DIM**-0.5
    plan = PagedPlan(slots, starts, lengths, tables, work.tokens, splits)
    return query.to(device, torch.bfloat16), plan


def measure_bandwidth(device: torch.device) -> float:
    """Return bytes read and written per second by a copy."""
    source = torch.randn(1 << 30, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_replays(lambda: target.copy_(source))


def measure_products(device: torch.device) -> float:
    """Return operations per second of a large matrix product of random bfloat16 numbers."""
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    return 2 * size**3 / time_replays(lambda: torch.mm(a, b))


def time_replays(run: Callable[[], object]) -> float:
    """Return the median seconds of a CUDA graph that holds one run."""
    run()  # compile and allocate before capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    seconds = []
    for _ in range(NUM_REPLAYS):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        seconds.append(before.elapsed_time(after) / 1000)
    return sorted(seconds)[NUM_REPLAYS // 2]
