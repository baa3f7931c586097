"""Checks of a model directory before it is loaded: config, headers of weights, tokenizer.

What is refused, and in which words, is workers/checkpoint's to say, which the engine reads too;
only the tokenizer is read by the HTTP half alone. A whole directory takes a moment.
"""

from collections.abc import Iterator

from qwenapi.doctor.check import Check, gib, ok, warning
from qwenapi.generation.rerank import answer_ids
from qwenapi.generation.tokenizers import load_tokenizer
from qwenapi.settings.table import Settings
from qwenapi.text.errors import TemplateError
from qwenapi.text.tokenizer import Tokenizer
from workers.checkpoint.checkpoint import Checkpoint
from workers.checkpoint.files import refuse_other_kind
from workers.errors import ModelError

_PURPOSES = {"generate": "", "embed": ", for embeddings", "rerank": ", for scores of documents"}
PROBE = [{"role": "user", "content": "?"}]


def not_fetched(settings: Settings) -> Check:
    return warning(
        "model",
        f"{settings.model} is not fetched yet",
        "it is no directory here, and not in the hub's cache",
        "start it, which fetches it first; then this command tells more",
    )


def check_config(checkpoint: Checkpoint) -> Check:
    """Say what the model is; raise ModelError if its config.json cannot be used."""
    length = checkpoint.config.context_length
    what = f"{checkpoint.directory}: {checkpoint.architecture}, {length} positions"
    return ok("config", what + _PURPOSES[checkpoint.task])


def check_tokenizer(checkpoint: Checkpoint) -> Iterator[Check]:
    """Load tokenizer and chat template; raise ModelError naming the file that is wrong."""
    file = checkpoint.directory / "tokenizer.json"
    refuse_other_kind(file)
    tokenizer = load_tokenizer(checkpoint.directory)
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ModelError(
            f"{file}: has {tokenizer.vocab_size} tokens, but config.json says vocab_size ="
            f" {checkpoint.config.vocab_size}; take both files from the same model"
        )
    yield ok("tokenizer", f"{file}: {tokenizer.vocab_size} tokens")
    if checkpoint.task == "generate":
        yield _check_end(checkpoint)
        yield _check_template(checkpoint, tokenizer)
    if checkpoint.task == "rerank" and not checkpoint.is_classifier:
        try:
            answer_ids(tokenizer)
        except ModelError as error:
            raise ModelError(f"{file}: {error}; choose another model") from error


def check_weights(checkpoint: Checkpoint, quantization: str) -> Check:
    """Compare the headers with config.json and a setting; raise ModelError naming the tensor."""
    checkpoint.check(quantization)
    weights = checkpoint.weights
    files = f"{len(weights.files)} file" + ("s" if len(weights.files) > 1 else "")
    return ok("weights", f"{gib(weights.disk_bytes)} of {weights.dtypes} in {files}")


def _check_end(checkpoint: Checkpoint) -> Check:
    if not checkpoint.eos_token_ids:
        return warning(
            "end of answers",
            f"{checkpoint.directory}: no file names a token that ends an answer",
            "every answer would go on until max_tokens",
            'write "eos_token_id" into generation_config.json, as the published model has it',
        )
    ids = ", ".join(map(str, checkpoint.eos_token_ids))
    return ok("end of answers", f"an answer ends at token {ids}")


def _check_template(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Check:
    try:
        num_tokens = len(tokenizer.encode_chat(PROBE).ids)
    except TemplateError as error:
        return warning(
            "chat template",
            f"{checkpoint.directory}: no conversation can be put to the model",
            str(error).rstrip("."),
            "take chat_template.jinja from the published model, or use /v1/completions alone",
        )
    return ok("chat template", f"a message of one character makes {num_tokens} tokens")
