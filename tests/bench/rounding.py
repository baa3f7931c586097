"""`python -m tests.bench.rounding`: what weights of fewer bits lose, on the demo model.

Perplexity of new answers of the kinds it was trained on, and greedy answers to held-out questions:
how many are the same to the last token as with plain bfloat16, and how many of the tokens up to
where they part. The demo model is very small, and small models lose most.
"""

import csv
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tests.engine.demo_answering import DEMO, DemoModel

sys.path.insert(0, str(DEMO))

from data.mixture import examples  # noqa: E402

NUM_TEXTS, SEED = 100, 20_261_130
ANSWER_TOKENS = 64
FORMS = ("auto", "int8", "int4")


@dataclass(frozen=True)
class Quality:
    """What one form of weights gives: perplexity a token, and greedy answers."""

    perplexity: float
    answers: Sequence[Sequence[int]]

    def agreement(self, other: "Quality") -> tuple[float, float]:
        """Return the shares of answers, and of tokens up to where they part, that are the same."""
        pairs = list(zip(self.answers, other.answers, strict=True))
        whole = sum(a == b for a, b in pairs)
        common = sum(
            sum(
                1
                for _ in itertools.takewhile(
                    lambda both: both[0] == both[1], zip(a, b, strict=False)
                )
            )
            for a, b in pairs
        )
        return whole / len(pairs), common / sum(len(a) for a, _ in pairs)


def measure(form: str) -> Quality:
    model = DemoModel(quantization=form, dtype="bfloat16")
    scores: list[float] = []
    for example in itertools.islice(examples(SEED), NUM_TEXTS):
        pieces = [(model.tokenizer(piece.text).input_ids, piece) for piece in example.pieces]
        found = model.score([[token for ids, _ in pieces for token in ids]])
        is_answer = [piece.is_learned for ids, piece in pieces for _ in ids][1:]
        scores += itertools.compress(found, is_answer)
    with (DEMO / "heldout" / "paraphrases.tsv").open(encoding="utf-8") as file:
        questions = [row["prompt"] for row in csv.DictReader(file, delimiter="\t")]
    prompts = [model.ids_of(question) for question in questions]
    answers = model.generate(prompts, max_tokens=ANSWER_TOKENS)
    return Quality(math.exp(-sum(scores) / len(scores)), answers)


def main() -> None:
    plain, *others = map(measure, FORMS)
    print(f"{NUM_TEXTS} texts, {len(plain.answers)} questions, {ANSWER_TOKENS} tokens an answer")
    print(f"{'bfloat16':>8}  perplexity {plain.perplexity:.4f}")
    for form, found in zip(FORMS[1:], others, strict=True):
        answers, tokens = plain.agreement(found)
        print(
            f"{form:>8}  perplexity {found.perplexity:.4f}"
            f" ({found.perplexity / plain.perplexity:.3f})  answers {answers:.0%}"
            f"  tokens {tokens:.0%}"
        )


if __name__ == "__main__":
    main()
