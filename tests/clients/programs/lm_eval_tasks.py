"""lm-evaluation-harness by its own command line, on two tasks of the folder it runs in.

What it logged of each request: the task, context, continuation, and the log-likelihood.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

url = os.environ["OPENAI_BASE_URL"] + "/completions"
arguments = {"base_url": url, "model": "qwen-demo", "num_concurrent": "2"}
command = [
    *(sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"),
    *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
    *("--tasks", "own_choices,own_endings", "--include_path", "."),
    *("--batch_size", "2", "--output_path", "out", "--log_samples"),
]
done = subprocess.run(command, capture_output=True, text=True)
assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
told = []
for file in sorted(Path("out").rglob("samples_*.jsonl")):
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        for request, answers in zip(sample["arguments"].values(), sample["resps"], strict=True):
            score, is_greedy = answers[0]
            told.append([request["arg_0"], request["arg_1"], float(score), str(is_greedy)])
print(json.dumps(told))
