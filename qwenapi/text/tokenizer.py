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
from typing import Any

from qwenapi.text.byte_level import TokenBytes
from qwenapi.text.errors import TemplateError, TokenizerError
from qwenapi.text.tokenizer_files import read_backend, read_bounds, read_template

Messages = Sequence[Mapping[str, Any]]

_STAND_IN = re.compile(r"\[([0-9a-f]{16}):(\d+)\]")
# Of one, two, three and four bytes, and white space.
_PROBE = "Aa 1\u00e9\n\t\u4e2d\U0001f642"


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
        self._template = read_template(folder)
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
        before, after = self._bounds if add_special_tokens else ([], [])
        return before + self._encode_pieces(self._control.split(text)) + after

    def encode_chat(self, messages: Messages, *, enable_thinking: bool | None = None) -> list[int]:
        """Return the ids of the prompt that asks for a conversation's next message."""
        shield = _Shield(self._control)
        text = self.render_chat(shield.cover(messages), enable_thinking=enable_thinking)
        pieces = self._control.split(text)
        pieces[::2] = map(shield.uncover, pieces[::2])
        return self._encode_pieces(pieces)

    def render_chat(
        self,
        messages: Any,
        *,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return a conversation's prompt as text; None leaves thinking to the template."""
        if self._template is None:
            raise TemplateError("This model has no chat template; use the completions interface.")
        chosen = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return self._template.render(
            messages, add_generation_prompt=add_generation_prompt, **chosen
        )

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of all ids; invalid UTF-8 becomes U+FFFD, unknown ids nothing."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return b"".join([self.token_bytes[i] for i in ids if i not in skipped]).decode(
            "utf-8", "replace"
        )

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
            return {key: self.cover(item) for key, item in value.items()}
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
