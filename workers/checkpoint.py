"""Checkpoint: a model directory's config, stop ids, sampling defaults and hash, without torch.

Knows the files' names and shapes; refuses to know how weights become a model.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from workers.errors import ModelError

SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Checkpoint:
    """A model directory; each property reads its file on first use, or raises ModelError of it."""

    directory: Path

    @classmethod
    def at(cls, path: str | Path) -> "Checkpoint":
        directory = Path(path).absolute()
        if not directory.is_dir():
            raise ModelError(
                f"{directory}: no such model directory; --model takes a directory with config.json"
            )
        return cls(directory)

    def check_config(self) -> None:
        """Raise ModelError if config.json cannot be read or lacks what every model has."""
        for field in ("vocab_size", "max_position_embeddings"):
            self._positive_int(field)

    @cached_property
    def config(self) -> dict[str, Any]:
        return self._json("config.json")

    @property
    def text_config(self) -> dict[str, Any]:
        """Return what config.json says of the text model, which may stand beside a vision tower."""
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        return self._json("generation_config.json", optional=True)

    @property
    def architecture(self) -> str:
        architectures = self.config.get("architectures") or ["none"]
        return str(architectures[0])

    @property
    def vocab_size(self) -> int:
        return self._positive_int("vocab_size")

    @property
    def max_position_embeddings(self) -> int:
        return self._positive_int("max_position_embeddings")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the ids that end an answer, of generation_config.json and of config.json."""
        ids: list[int] = []
        for source in (self.generation_config, self.config, self.text_config):
            eos = source.get("eos_token_id")
            ids += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return tuple(dict.fromkeys(ids))

    @property
    def sampling_defaults(self) -> dict[str, float]:
        """Return the sampling fields of generation_config.json; `do_sample: false` means greedy."""
        found = {
            k: float(v)
            for k in SAMPLING_DEFAULTS
            if isinstance(v := self.generation_config.get(k), int | float)
        }
        return {"temperature": 0.0} if self.generation_config.get("do_sample") is False else found

    @cached_property
    def weight_files(self) -> tuple[Path, ...]:
        """Return the safetensors files, sorted; those an index names must all be there."""
        index = self.directory / "model.safetensors.index.json"
        if index.exists():
            files = [
                self.directory / name
                for name in set(self._json(index.name).get("weight_map", {}).values())
            ]
        else:
            files = list(self.directory.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{self.directory}: no *.safetensors files; other weight formats are not loaded"
            )
        for file in files:
            if not file.is_file():
                raise ModelError(f"{file}: named by {index.name}, but missing")
        return tuple(sorted(files))

    @property
    def tokenizer_sha256(self) -> str:
        return hashlib.sha256(self._bytes("tokenizer.json")).hexdigest()

    @property
    def model_hash(self) -> str:
        """Return a cheap identity: of config.json, weight files' names, sizes and headers."""
        digest = hashlib.sha256(self._bytes("config.json"))
        for file in self.weight_files:
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            digest.update(_safetensors_header(file))
        return digest.hexdigest()

    def _positive_int(self, field: str) -> int:
        value = self.text_config.get(field)
        if not isinstance(value, int) or value < 1:
            raise ModelError(
                f"{self.directory / 'config.json'}: {field} must be a positive integer,"
                f" not {value!r}"
            )
        return value

    def _json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        if optional and not (self.directory / name).exists():
            return {}
        try:
            value = json.loads(self._bytes(name))
        except ValueError as error:
            raise ModelError(f"{self.directory / name}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise ModelError(f"{self.directory / name}: expected a JSON object")
        return value

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as error:
            raise ModelError(f"{self.directory / name}: {error.strerror}") from error


def _safetensors_header(file: Path) -> bytes:
    """Return the JSON header of a safetensors file: uint64 length, then that many bytes."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= min(100_000_000, file.stat().st_size - 8):
                raise ModelError(f"{file}: not a safetensors file (header of {length} bytes)")
            return stream.read(length)
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from error
