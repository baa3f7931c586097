"""Prompts with pictures by kernels are answered as by torch.

On a CPU the kernels run in Triton's interpreter, and so the models are of two layers.
"""

import pytest

from tests.engine.conftest import DEVICE, Driver
from tests.engine.seeing_models import SECTIONS, Picture, Prompt, write_seeing
from tests.engine.test_hybrid_by_kernels import TINY
from tests.engine.test_images import text
from workers.config import EngineConfig
from workers.engine.engine import Engine

pytest.importorskip("triton", reason="kernels need the package triton")
pytestmark = pytest.mark.slow  # each kernel has a test of its own

PROMPTS = [Prompt(text(5), Picture(1, 3, 5), text(6)), Prompt(text(9))]
HALF = {"rope_parameters": SECTIONS | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}}
MODELS = {"qwen3_vl": {}, "qwen3_5": TINY | HALF | {"hidden_size": 64}}


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_torch(tmp_path, name):
    write_seeing(tmp_path, name, **MODELS[name])
    said = {}
    for backend in ("torch", "triton"):
        config = EngineConfig(
            str(tmp_path),
            device=DEVICE,
            dtype="float32",
            num_blocks=20,
            threads=1,
            attention_backend=backend,
            max_num_batched_tokens=64,
            max_num_seqs=4,
        )
        driver = Driver(Engine(config, lambda stage, fraction: None))
        for key, prompt in enumerate(PROMPTS):
            driver.add(key, prompt.ids, images=prompt.images, max_tokens=3, logprobs=0)
        driver.run()
        said[backend] = [
            [(s.token_id, s.logprob) for chunk in driver.chunks[key] for s in chunk.logprobs]
            for key in range(len(PROMPTS))
        ]
    for ours, theirs in zip(said["triton"], said["torch"], strict=True):
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], abs=1e-3)
