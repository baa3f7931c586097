"""`qwenapi ask`: put one prompt to a server's `POST /generate` and print the answers."""

import argparse
import os
import sys

DEFAULT_PROMPT = "写一个 Python 函数，计算斐波那契数列的第 n 项。"
TIMEOUT_SECONDS = 360
KEY_VARIABLE = "QWENAPI_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its flags, as the qwen2 document prints them."""
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="what to ask")
    parser.add_argument("--max-length", type=int, default=512, help="most tokens of an answer")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--num-sequences", type=int, default=1, help="how many answers")
    parser.add_argument("--url", default="http://localhost:8000", help="the server")
    parser.add_argument(
        "--api-key", help=f"the key to present, where keys are asked for (default: ${KEY_VARIABLE})"
    )


def main(parsed: argparse.Namespace) -> int:
    """Ask and print; return 1 and say why if there is no answer."""
    import requests

    body = {
        "prompt": parsed.prompt,
        "max_length": parsed.max_length,
        "temperature": parsed.temperature,
        "top_p": parsed.top_p,
        "num_return_sequences": parsed.num_sequences,
    }
    url = parsed.url.rstrip("/") + "/generate"
    key = parsed.api_key or os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.post(url, json=body, headers=headers, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        print(f"qwenapi: no answer from {url}: {type(error).__name__}", file=sys.stderr)
        return 1
    if answer.status_code != 200:
        print(f"qwenapi: {url} answered {answer.status_code}: {answer.text[:500]}", file=sys.stderr)
        return 1
    for number, text in enumerate(answer.json()["generated_texts"], 1):
        if parsed.num_sequences > 1:
            print(f"--- {number} ---")
        print(text)
    return 0
