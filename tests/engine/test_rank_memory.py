"""A rank holds its share of a model, measured in its own process.

An engine keeps what it frees, so what it holds in the end is also about the most that it ever held.
"""

from pathlib import Path

import pytest

from tests.engine.conftest import write_model
from tests.engine.ranks import ranked
from workers.checkpoint.checkpoint import Checkpoint

MIB = 1 << 20
LARGE = {
    "vocab_size": 24000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4,
    "head_dim": 64, "tie_word_embeddings": False,
}  # fmt: skip


def held(pid):
    """Return the bytes of a process's own memory; pages of files are the page cache's."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def held_by_follower(model, folder, size):
    with ranked(model, size, folder, num_blocks=16) as driver:
        driver.add(0, range(4, 40))
        driver.run()
        return max(map(held, driver.pids))


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_follower_holds_its_share_of_the_weights(tmp_path, size):
    write_model(tmp_path / "large", "qwen3", **LARGE)
    write_model(tmp_path / "small", "qwen3")
    weights = 4 * Checkpoint.at(tmp_path / "large").weights.num_parameters
    assert weights > 150 * MIB
    large, small = (
        held_by_follower(tmp_path / name, tmp_path, size) for name in ("large", "small")
    )
    print(f"{size} ranks: {(large - small) / MIB:.0f} of {weights / MIB:.0f} MiB")
    # Besides, what was freed while layers were merged.
    assert 0.9 * weights / size < large - small < 1.5 * weights / size
