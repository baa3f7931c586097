"""Tokenizer: one model's vocabulary and chat template, read from its directory.

Knows byte-level BPE, which every Qwen model uses, and refuses anything else at start. Text of a
conversation never becomes a control token: `<|im_start|>` written by a user is encoded as the
characters it is. A raw prompt may use them.

    conversation ─ cover ─ template ─ split at control tokens ─ uncover ─ BPE of the pieces ─ ids
"""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from qwenapi.text.byte_level import TokenBytes
from qwenapi.text.errors import TemplateError, TokenizerError
from qwenapi.text.tokenizer_files import (
    read_backend,
    read_bounds,
    read_config,
    read_template,
)

Messages = Sequence[Mapping[str, Any]]

OPENING = "<think>\n"

_STAND_IN = re.compile(r"\[([0-9a-f]{16}):(\d+)\]")
# Of one, two, three and four bytes, and white space.
_PROBE = "Aa 1\u00e9\n\t\u4e2d\U0001f642"


class EncodedChat(NamedTuple):
    """A conversation's prompt: its ids, and its text as the template wrote it."""

    ids: list[int]
    text: str


class Tokenizer:
    """Turns text and conversations into ids, and ids into bytes."""

    def __init__(self, model_dir: Path | str) -> None:
        folder = Path(model_dir)
        path = folder / "tokenizer.json"
        self._backend = read_backend(path)
        # `_control` cuts control tokens out; those inside a piece are then plain text.
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self._control_ids = {token.content: id_ for id_, token in added.items() if token.special}
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self._bounds = read_bounds(path, self._backend)
        self.config = read_config(folder)
        self._template = read_template(folder, self.config)
        self.special_ids = frozenset(self._control_ids.values())
        self.token_bytes = TokenBytes(self._backend)
        self._refuse_losses(path)

    @cached_property
    def vocab_size(self) -> int:
        """Return how far the tokenizer's ids go; a model's own may be padded beyond it."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a raw prompt, in which control tokens count as such.

        The backend releases the GIL, so a long text may be encoded in a thread.
        """
        ids = self._encode_pieces(self._control.split(text))
        return self.bounded(ids) if add_special_tokens else ids

    def encode_plain(self, text: str) -> list[int]:
        """Return the ids of a text in which control tokens are the characters they are."""
        return self._encode_pieces([text])

    def bounded(self, ids: list[int]) -> list[int]:
        """Return a text's ids between those that the tokenizer puts before and after every text."""
        before, after = self._bounds
        return before + ids + after

    @property
    def template_source(self) -> str:
        """Return the chat template's own text, empty where the model has none."""
        return "" if self._template is None else self._template.source

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Return the ids of the tokens that stand beside the vocabulary, by their text."""
        added = self._backend.get_added_tokens_decoder()
        return {token.content: id_ for id_, token in added.items()}

    def encode_chat(
        self, messages: Messages, *, prefill: str = "", **arguments: Any
    ) -> EncodedChat:
        """Return the prompt that asks for a conversation's next message.

        `prefill` is how that message begins. `arguments` are the template's; None leaves one out.
        """
        shield = _Shield(self._control)
        covered = {name: shield.cover(value) for name, value in arguments.items()}
        text = self.render_chat(shield.cover(messages), **covered)
        text += shield.cover(_continued(text, prefill))
        pieces = self._control.split(text)
        pieces[::2] = map(shield.uncover, pieces[::2])
        return EncodedChat(self._encode_pieces(pieces), text)

    def render_chat(self, messages: Any, **arguments: Any) -> str:
        """Return a conversation's prompt as text; an argument of None is left to the template."""
        if self._template is None:
            raise TemplateError("This model has no chat template; use the completions interface.")
        chosen = {name: value for name, value in arguments.items() if value is not None}
        return self._template.render(messages, **{"add_generation_prompt": True, **chosen})

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of all ids; invalid UTF-8 becomes U+FFFD, unknown ids nothing."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return b"".join([self.token_bytes[i] for i in ids if i not in skipped]).decode(
            "utf-8", "replace"
        )

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return tokens by the names they have in the vocabulary; an unknown id's is empty."""
        return [self._backend.id_to_token(id_) or "" for id_ in ids]

    def _refuse_losses(self, path: Path) -> None:
        """Refuse a tokenizer that does not give every text back."""
        found = self.decode(self.encode(_PROBE, add_special_tokens=False))
        if found != _PROBE:
            raise TokenizerError(
                f"{path}: makes {found!r} of {_PROBE!r}; take the file of the published model"
            )

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """Encode texts at the even places, between them control tokens."""
        texts = self._backend.encode_batch_fast(list(pieces[::2]), add_special_tokens=False)
        ids = list(texts[0].ids)
        for control, text in zip(pieces[1::2], texts[1:], strict=True):
            ids.append(self._control_ids[control])
            ids += text.ids
        return ids


def _continued(prompt: str, prefill: str) -> str:
    """Return what to add to a prompt that may have opened a thought, so that an answer begins."""
    if not prefill or not prompt.endswith(OPENING):
        return prefill
    if prefill.startswith(OPENING):
        return prefill.removeprefix(OPENING)
    return "\n</think>\n\n" + prefill


class _Shield:
    """Covers control tokens in a caller's strings while the template runs: only its own remain.

    A token becomes a stand-in with a random name no caller can know; `uncover` restores the
    characters afterwards.
    """

    def __init__(self, control: re.Pattern[str]) -> None:
        self._control = control
        self._covered: list[str] = []
        self._nonce = secrets.token_hex(8)

    def cover(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._control.sub(self._stand_in_for, value)
        if isinstance(value, Mapping):
            return {self.cover(key): self.cover(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.cover(item) for item in value]
        return value

    def uncover(self, text: str) -> str:
        return _STAND_IN.sub(self._original, text) if self._covered else text

    def _stand_in_for(self, match: re.Match[str]) -> str:
        self._covered.append(match[0])
        return f"[{self._nonce}:{len(self._covered) - 1}]"

    def _original(self, match: re.Match[str]) -> str:
        return self._covered[int(match[2])] if match[1] == self._nonce else match[0]
