"""`python -m tests.gpu.check`: everything a machine with a GPU has to say, in one call.

1. The kernels' tests, compiled: float32, bfloat16 and float16, each within its own error.
2. The engine's own tests on CUDA (float32, no TF32): parity with generate(), batching, resume; with
   the kernels, and parity with torch's attention too.
3. Attention's time beside that of the bytes and products it cannot do without.
4. Decode and prefill rates of the engine alone, on random bfloat16 weights of Qwen3's sizes.

Needs torch with CUDA, triton, transformers, pytest, hypothesis, msgspec and requests. Not run yet:
no GPU was there.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu import attention_roofline

KERNEL_TESTS = ("tests/kernels",)
ENGINE_TESTS = (
    "tests/engine/test_parity.py",
    "tests/engine/test_batching.py",
    "tests/engine/test_sampler.py",
    "tests/engine/test_threshold_drawing.py",
)
DIMENSIONS = {
    "Qwen3-0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(DIMENSIONS), choices=list(DIMENSIONS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parsed = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing checked")
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {platform.machine()}")
    code = run_tests(KERNEL_TESTS)
    code = run_tests(ENGINE_TESTS) or code
    code = run_tests(ENGINE_TESTS[:1], attention="torch") or code
    attention_roofline.report()
    for name in parsed.models:
        time_model(name, parsed.rows)
    return code


def run_tests(files: tuple[str, ...], attention: str = "auto") -> int:
    environ = os.environ | {
        "QWENAPI_TEST_DEVICE": "cuda",
        "QWENAPI_TEST_ATTENTION": attention,
        "NVIDIA_TF32_OVERRIDE": "0",
    }
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *files], env=environ).returncode


def time_model(name: str, row_counts: list[int]) -> None:
    """Print rates at 128 prompt and 64 new tokens, one line for each number of rows."""
    from workers.config import EngineConfig
    from workers.engine.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), DIMENSIONS[name])
        engine = Engine(EngineConfig(folder, dtype="bfloat16", device="cuda"), lambda *_: None)
        time_rows(engine, 1)
        for rows in row_counts:
            prefill, decode = time_rows(engine, rows)
            print(f"{name} {rows:3d} rows: prefill {prefill:,.0f}, decode {decode:,.0f} tokens/s")


def write_model(directory: Path, dimensions: dict[str, int | bool]) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_936, num_key_value_heads=8, head_dim=128, max_position_embeddings=8192
    )
    config.update(dimensions)
    with torch.device("cuda"):
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    Tokenizer(models.BPE()).save(str(directory / "tokenizer.json"))


def time_rows(engine: object, rows: int) -> tuple[float, float]:
    """Return prompt tokens per second until all rows decode, then output tokens per second."""
    import torch

    from workers.protocol import Generate, SamplingParams

    generator = torch.Generator().manual_seed(rows)
    for row in range(rows):
        prompt = torch.randint(0, 150_000, (128,), generator=generator).tolist()
        params = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
        request = Generate(wid=row, request_id=str(row), prompt_ids=tuple(prompt), params=params)
        engine.add((0, row), request)  # type: ignore[attr-defined]
    started, seen = time.perf_counter(), set()
    while len(seen) < rows:
        seen |= {key for key, _ in engine.step().chunks}  # type: ignore[attr-defined]
    torch.cuda.synchronize()
    decoding, tokens = time.perf_counter(), 0
    while engine.has_work:  # type: ignore[attr-defined]
        tokens += len(engine.step().chunks)  # type: ignore[attr-defined]
    torch.cuda.synchronize()
    return 128 * rows / (decoding - started), tokens / (time.perf_counter() - decoding)


if __name__ == "__main__":
    sys.exit(main())
