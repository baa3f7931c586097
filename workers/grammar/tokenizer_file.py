"""The tokenizer that grammars are written over, made for llguidance from a tokenizer.json.

llguidance tells text from control tokens, but cuts forced text by the file's own rules, by which
the text `<tool_call>` is the token; then it refuses what it had forced (seen in 1.9.1). So it is
given a file whose added tokens have names that no text has, and grammars name them by number.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from workers.grammar.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

# A noncharacter of Unicode: valid UTF-8, and in nobody's text.
_UNHEARD_OF = "\ufdd0"


class LoadedTokenizer(NamedTuple):
    """llguidance's tokenizer, and the added tokens' numbers by the names the file gives them."""

    tokenizer: "LLTokenizer"
    token_ids: dict[str, int]


class TokenizerFile(NamedTuple):
    """A tokenizer.json, the size of the model's vocabulary, and the tokens that end an answer.

    The vocabulary may be larger than the tokenizer's: what lies beyond is never allowed.
    """

    path: str
    vocab_size: int
    eos_token_ids: tuple[int, ...]

    def load(self) -> LoadedTokenizer:
        """Read the file; raise GrammarError if llguidance cannot. Takes a second, with the GIL."""
        if not self.eos_token_ids:
            raise GrammarError("grammars cannot be used: the model names no end-of-text token")
        try:
            from llguidance import LLTokenizer

            renamed, token_ids = _rename(Path(self.path).read_bytes())
            tokenizer = LLTokenizer(
                renamed, n_vocab=self.vocab_size, eos_token=list(self.eos_token_ids)
            )
        except BaseException as error:  # of Rust, also a panic, which is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise GrammarError(f"grammars cannot be used with this tokenizer: {error}") from error
        return LoadedTokenizer(tokenizer, token_ids)


def _rename(text: bytes) -> tuple[str, dict[str, int]]:
    file: dict[str, Any] = msgspec.json.decode(text)
    token_ids = {token["content"]: token["id"] for token in file.get("added_tokens") or ()}
    for token in file.get("added_tokens") or ():
        token |= {"content": f"<{_UNHEARD_OF}{token['id']}>", "special": True}
    file["post_processor"] = None  # may name them, and only shifts offsets
    return msgspec.json.encode(file).decode(), token_ids
