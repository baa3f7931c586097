"""Read a model directory's tokenizer files, and try them out before anything is served.

Whatever is odd in them is a TokenizerError here, so that no request meets it: another kind of
tokenizer, ids that the library would change, texts that do not come back, a template of a wrong
type.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from qwenapi.text.chat_template import ChatTemplate
from qwenapi.text.errors import TokenizerError

CONFIG = "tokenizer_config.json"
_NAMED_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_PUBLISHED = "take the file of the published model"


def read_backend(path: Path) -> Backend:
    """Return the library's tokenizer over byte-level BPE, the only kind that Qwen models use."""
    if not path.is_file():
        raise TokenizerError(
            f"{path}: missing, and a model directory needs the tokenizer it was trained with;"
            " complete the download"
        )
    with _refusing(path, "not a tokenizer that the library can read"):
        text = path.read_text("utf-8")
        backend = Backend.from_str(text)
        added = {
            token["content"]: token["id"] for token in json.loads(text).get("added_tokens", ())
        }
    if "ByteLevel" not in repr(backend.decoder) or type(backend.model).__name__ != "BPE":
        raise TokenizerError(
            f"{path}: not byte-level BPE, the only kind Qwen models use; {_PUBLISHED}"
        )
    for content, id_ in added.items():
        if (found := backend.token_to_id(content)) != id_:
            raise TokenizerError(
                f"{path}: added token {content!r} has the id {id_}, which the library reads as"
                f" {found}; {_PUBLISHED}"
            )
    backend.no_padding()
    backend.no_truncation()
    return backend


def read_bounds(path: Path, backend: Backend) -> tuple[list[int], list[int]]:
    """Return the ids that the post-processor puts before and after every text."""
    with _refusing(path, "its post_processor fails"):
        bare = backend.encode("a", add_special_tokens=False).ids
        whole = backend.encode("a", add_special_tokens=True).ids
    places = (i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare)
    start = next(places, None)
    if start is not None:
        before, after = whole[:start], whole[start + len(bare) :]
        if {*before, *after} <= backend.get_added_tokens_decoder().keys():
            return before, after
    raise TokenizerError(
        f"{path}: its post_processor makes {whole} of a text of {bare}, and may only put added"
        f" tokens beside it; {_PUBLISHED}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, empty where there is none."""
    path = folder / CONFIG
    config: Any = {}
    if path.is_file():
        with _refusing(path, "not JSON"):
            config = json.loads(path.read_text("utf-8"))
    if not isinstance(config, dict):
        raise TokenizerError(f"{path}: not a JSON object; {_PUBLISHED}")
    return config


def read_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the chat template, of its own file or of tokenizer_config.json, which is `config`."""
    path = folder / CONFIG
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        with _refusing(own_file, "not a text in UTF-8"):
            source: Any = own_file.read_text("utf-8")
    else:
        source = _default_template(config.get("chat_template"))
    tokens, where = _named_tokens(config, path), own_file if own_file.is_file() else path
    if source in (None, ""):
        return None
    if not _is_text(source):
        raise TokenizerError(
            f"{where}: chat_template is a {type(source).__name__}, not a text; {_PUBLISHED}"
        )
    try:
        return ChatTemplate(source, tokens)
    except TokenizerError as error:
        raise TokenizerError(f"{where}: {error}; {_PUBLISHED}") from error


def _default_template(template: Any) -> Any:
    """Return the template that is used if none is asked for, of one or of several by name."""
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {str(entry.get("name")): entry.get("template", {}) for entry in template}
    return template.get("default") if isinstance(template, dict) else template


def _named_tokens(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the tokens a template may name, as `bos_token`: strings, or objects with `content`."""
    found: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        key = f"{name}_token"
        entry = config.get(key)
        token = entry.get("content", entry) if isinstance(entry, dict) else entry
        if token in (None, "", False):
            continue
        if not _is_text(token):
            raise TokenizerError(f"{path}: {key} is {token!r}, not a token; {_PUBLISHED}")
        found[key] = token
    return found


def _is_text(value: Any) -> bool:
    """Whether a value is a string that has bytes; half a surrogate pair has none."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


@contextmanager
def _refusing(path: Path, what: str) -> Iterator[None]:
    """Raise TokenizerError for whatever goes wrong; the library's panics are no Exceptions."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, TokenizerError):
        raise
    except BaseException as error:
        reason = str(error).partition("\n")[0][:200]
        raise TokenizerError(f"{path}: {what}: {reason}; {_PUBLISHED}") from error
