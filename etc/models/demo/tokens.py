"""The demo's tokenizer: a byte-level BPE with Qwen's pre-tokenizer, learned from the training data.

Knows its files and how a training example becomes ids. Refuses to know the model.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from data.conversation import Piece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor

CONTEXT = 8192
END, PAD = "<|im_end|>", "<|endoftext|>"
_SPECIAL = (PAD, "<|im_start|>", END)
_MARKS = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
_VOCABULARY = 3000
_LONGEST_TOKEN_BYTES = 12
_DROPOUT = 0.1
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Encoded:
    """Ids of one example and the weight with which each of them is learned."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.weights: list[float] = []

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: list[int], piece: Piece) -> None:
        """Append a piece; a long answer counts more than a short one, but not in proportion."""
        weight = len(ids) ** -0.5 if piece.is_learned else 0.0
        given = min(piece.num_given, len(ids))
        self.ids += ids
        self.weights += [0.0] * given + [weight] * (len(ids) - given)


class Encoder:
    """Turn pieces into ids; questions may be cut in unusual ways, so that rare words are met."""

    def __init__(self, directory: Path) -> None:
        file = str(directory / "tokenizer.json")
        self._plain, self._rough = Tokenizer.from_file(file), Tokenizer.from_file(file)
        self._rough.model.dropout = _DROPOUT

    def encode(self, pieces: Iterable[Piece], is_rough: bool) -> Encoded:
        encoded = Encoded()
        for piece in pieces:
            tokenizer = self._rough if is_rough and not piece.is_learned else self._plain
            encoded.add(tokenizer.encode(piece.text).ids, piece)
        return encoded


def write_tokenizer(texts: Iterable[str], directory: Path) -> None:
    """Learn the tokenizer from texts and write its two files."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PATTERN), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(_SPECIAL) - len(_MARKS),
        max_token_length=_LONGEST_TOKEN_BYTES,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _MARKS])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_config(directory)


def _write_config(directory: Path) -> None:
    template = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
