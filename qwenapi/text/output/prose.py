"""Text outside calls: content and thoughts, without the whitespace that belongs to markup.

Whitespace before a marker and newlines behind one are the template's, not the author's: what may
be such is held back until the next character decides. Between a call and text that follows it, the
whitespace is the text's, unless that text would be the first.
"""

from collections.abc import Callable

from qwenapi.text.output.code_fence import CodeFence
from qwenapi.text.output.events import Event, Reasoning, Text
from qwenapi.text.output.reader import MAX_SPACE, SPACE


class Prose:
    """Writes one output's prose as events. Told by the parser where markers stood."""

    def __init__(self, emit: Callable[[Event], None], *, holds_space: bool) -> None:
        self.is_thought = False
        self.fence = CodeFence()
        self._emit = emit
        self._holds_space = holds_space  # in content; in a thought `</think>` may always follow
        self._space = ""
        self._skips_newlines = False
        self._has_content = False
        self._follows_call = False

    def write(self, text: str) -> None:
        """Add text, which is no marker."""
        self.fence.advance(text)
        text = self._space + text
        end = len(text)
        if self.is_thought or self._holds_space:
            end = max(len(text.rstrip(SPACE)), len(text) - MAX_SPACE)
        self._space = text[end:]
        self._release(text[:end])

    def drop_space(self) -> None:
        """Forget the whitespace held back: a marker follows it."""
        self._space = ""

    def begin_thought(self) -> None:
        """Take what follows for a thought."""
        self._behind_marker(skips_newlines=True)
        self.is_thought = True

    def end_thought(self) -> None:
        """Take what follows for content."""
        self._behind_marker(skips_newlines=True)

    def end_call(self) -> None:
        """Go on behind a call, which ends a thought as well."""
        self._behind_marker(skips_newlines=not self._has_content)
        self._follows_call = True

    def finish(self) -> None:
        """Release what is held: the end has come, and no marker."""
        if not self._follows_call:
            self._release(self._space)
        self._space = ""

    def _behind_marker(self, *, skips_newlines: bool) -> None:
        self.drop_space()
        self.is_thought = False
        self.fence = CodeFence()
        self._skips_newlines = skips_newlines

    def _release(self, text: str) -> None:
        if self._skips_newlines:
            text = text.lstrip("\n")
        if not text:
            return
        self._skips_newlines = self._follows_call = False
        if self.is_thought:
            self._emit(Reasoning(text))
        else:
            self._has_content = True
            self._emit(Text(text))
