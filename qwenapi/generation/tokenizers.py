"""Tokenizers: for each model the engines serve its Tokenizer, and what pictures it takes."""

import time
from hashlib import sha256
from pathlib import Path

from qwenapi.errors import EngineUnavailable
from qwenapi.text.errors import TextError
from qwenapi.text.tokenizer import Tokenizer
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.vision import VisionConfig
from workers.errors import ModelError
from workers.wire.protocol import ModelCard


class Tokenizers:
    """Served names belong to the HTTP half; which model is behind them, each engine's card says."""

    def __init__(self, own_folder: Path | None = None) -> None:
        """`own_folder`: where this machine has the model that others' engines serve."""
        self._own_folder = own_folder
        self.since = int(time.time())
        self._loaded: dict[tuple[str, str], Tokenizer] = {}
        self._visions: dict[tuple[str, str], VisionConfig | None] = {}

    def prepare(self, card: ModelCard) -> None:
        """Load what an engine's model needs; called in a thread, before requests can reach it."""
        key = (card.model_dir, card.tokenizer_sha256)
        if key not in self._loaded:
            self._loaded[key] = load_tokenizer(self._folder(card))
        seen = (card.model_dir, card.model_hash)
        if card.image_side and seen not in self._visions:
            self._visions[seen] = Checkpoint.at(self._folder(card)).vision_config

    def of(self, card: ModelCard | None) -> Tokenizer:
        """Return the tokenizer of a connected engine; raise EngineUnavailable if there is none."""
        if card is None:
            raise EngineUnavailable(retry_after=1)
        return self._loaded[card.model_dir, card.tokenizer_sha256]

    def vision_of(self, card: ModelCard) -> VisionConfig | None:
        """Return what pictures a connected engine's model takes, if it takes any."""
        return self._visions.get((card.model_dir, card.model_hash)) if card.image_side else None

    def _folder(self, card: ModelCard) -> Path:
        """Return the folder with the tokenizer of an engine, which may be of another machine."""
        folder = Path(card.model_dir)
        if self._own_folder is None:
            return folder
        for here in (folder, self._own_folder):
            file = here / "tokenizer.json"
            if file.is_file() and sha256(file.read_bytes()).hexdigest() == card.tokenizer_sha256:
                return here
        raise ModelError(
            f"neither {folder} nor {self._own_folder} has the tokenizer of the engines on this"
            " machine; let --model name a folder with the same tokenizer.json and chat template"
        )


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """Return a model directory's tokenizer; raise ModelError naming the file that is wrong."""
    try:
        return Tokenizer(model_dir)
    except TextError as error:
        raise ModelError(str(error)) from error
