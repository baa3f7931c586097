"""OpenMP's environment, which is read once, when torch is imported."""

import os

# Rounds of libgomp's waiting loop. On two quiet cores 3,000 to 30,000 kept a stream at 95 to 100 %
# of the speed it has with endless ones.
SPIN_COUNT = 10_000


def prepare_openmp(threads: int) -> None:
    """Set what OpenMP reads when torch is imported."""
    # More threads than cores fight for them.
    os.environ["OMP_NUM_THREADS"] = str(threads or os.cpu_count() or 1)
    # A thread that waits for another spins for a while: for ever, it would keep that one from a
    # core which a neighbour has taken; not at all, it would sleep through the next product.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
