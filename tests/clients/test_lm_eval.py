"""lm-evaluation-harness by its command line: each log-likelihood is what transformers computes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qwenapi.settings.table import etc_dir
from tests.clients.clients import Client, output
from tests.running_server import RunningServer

# The harness takes 600 MB, and minutes to install.
pytestmark = pytest.mark.slow
DEMO = etc_dir() / "models" / "demo"
TASKS = Path(__file__).parent / "lm_eval"
HARNESS = Client("lm-evaluation-harness", "lm_eval_tasks.py", "lm_eval")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="module")
def reference():
    """Return what computes a continuation's log-likelihood and whether greedy would say it."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()

    def compute(context, continuation):
        start = len(tokenizer(context)["input_ids"])
        ids = tokenizer(context + continuation)["input_ids"]
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[:-1]
        chosen = logprobs[torch.arange(len(ids) - 1), ids[1:]][start - 1 :]
        return chosen.sum().item(), bool((chosen == logprobs.amax(-1)[start - 1 :]).all())

    return compute


def test_two_tasks_of_own_data_have_transformers_likelihoods(tmp_path, pytestconfig, reference):
    shutil.copytree(TASKS, tmp_path, dirs_exist_ok=True)
    server = RunningServer(tmp_path / "run", "--dtype", "float32", "--threads", "1")
    try:
        server.wait_until_ready()
        told = output(HARNESS, server.url, tmp_path, pytestconfig.cache, **OFFLINE)
        assert server.stop() == 0
    finally:
        server.close()
    assert "route=/tokenizer_info" in server.log  # its tokens are the server's
    asked = json.loads(told)
    files = [file.read_text(encoding="utf-8") for file in TASKS.glob("*.jsonl")]
    lines = [json.loads(line) for text in files for line in text.splitlines()]
    assert len(asked) == sum(len(line.get("choices", "1")) for line in lines) == 14
    for context, continuation, found, is_greedy in asked:
        expected, would_be = reference(context, continuation)
        assert math.isclose(found, expected, abs_tol=1e-3), (context, continuation)
        assert is_greedy == str(would_be)
