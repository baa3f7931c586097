"""TextStream: token ids of one choice to the text its caller may see, stop strings applied."""

from collections.abc import Sequence
from typing import NamedTuple

from qwenapi.text.detokenizer import Detokenizer
from qwenapi.text.stop_matcher import StopAutomaton, StopMatcher
from qwenapi.text.tokenizer import Tokenizer


class TextDelta(NamedTuple):
    """New text, and whether a stop string has ended the choice."""

    text: str
    is_stopped: bool


class TextStream:
    """One choice. Its first `min_tokens` tokens are not searched for stops.

    The id that stopped a choice in the engine (eos, stop_token_ids) is no text: leave it out. With
    `includes_stop` neither that nor a stop string is left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: StopAutomaton | None = None,
        *,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        includes_stop: bool = False,
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._matcher = StopMatcher(stops or StopAutomaton(()), includes_stop=includes_stop)
        self._num_unchecked = min_tokens

    @property
    def stop(self) -> str | None:
        """Return the stop string that has ended the choice, None while there is none."""
        return self._matcher.matched

    def push(self, ids: Sequence[int]) -> TextDelta:
        """Return the text these ids release. After a stop it is empty."""
        unchecked, checked = ids[: self._num_unchecked], ids[self._num_unchecked :]
        self._num_unchecked -= len(unchecked)
        text = self._detokenizer.push(unchecked) if unchecked else ""
        text += self._matcher.push(self._detokenizer.push(checked))
        return TextDelta(text, self._matcher.matched is not None)

    def finish(self) -> TextDelta:
        """Return what was held back; call once, when the choice has ended."""
        text = self._matcher.push(self._detokenizer.finish())
        return TextDelta(text + self._matcher.finish(), self._matcher.matched is not None)
