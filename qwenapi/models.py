"""The names a server answers to, and the tokenizers of what its engines serve."""

import logging
import time
from collections.abc import Sequence

from qwenapi.errors import EngineUnavailable, ModelNotFound
from qwenapi.text.tokenizer import Tokenizer
from workers.protocol import ModelCard

log = logging.getLogger(__name__)


class Models:
    """Served names belong to the HTTP half; which model is behind them, each engine's card says."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.created = int(time.time())
        self._tokenizers: dict[tuple[str, str], Tokenizer] = {}

    @property
    def canonical(self) -> str:
        """Return the name replies carry, whichever alias was asked for."""
        return self.names[0]

    def check(self, name: str | None) -> None:
        """Refuse a name that is not served; a caller that names none gets what there is."""
        if name is not None and name not in self.names:
            raise ModelNotFound(name, self.names)

    def prepare(self, card: ModelCard) -> None:
        """Load the tokenizer of an engine's model; called in a thread, before requests can reach
        the engine.
        """
        key = (card.model_dir, card.tokenizer_sha256)
        if key not in self._tokenizers:
            self._tokenizers[key] = Tokenizer(card.model_dir)

    def tokenizer(self, card: ModelCard | None) -> Tokenizer:
        """Return the tokenizer of a connected engine; raise EngineUnavailable if there is none."""
        if card is None:
            raise EngineUnavailable(retry_after=1)
        return self._tokenizers[card.model_dir, card.tokenizer_sha256]
