"""The embedded demo model: a tiny Qwen3 with random weights, made in seconds on first use, offline.

Knows the recipe of its files and where they are cached. Refuses to know: how it is served.
Its text is noise. torch is imported only while the model is made.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import ByteLevel as ByteLevelProcessor

from workers.errors import ConfigError
from workers.model import demo_corpus

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

_SEED = 20250101
_WEIGHT_STD = 0.08
_CONTEXT = 8192
_VOCABULARY = 2048
_LONGEST_TOKEN_BYTES = 12
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKS = (
    ("<tool_call>", "</tool_call>"),
    ("<tool_response>", "</tool_response>"),
    ("<think>", "</think>"),
)
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- '# Tools\\n\\nThe functions you may call:\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '\\n</tools>\\n\\nCall one so:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {{- (message.content or '').split('</think>')[-1].lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- set call = call.function or call %}
            {{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""


def demo_model_dir() -> Path:
    """Return the demo's directory in the user's cache, making it if this recipe has none yet."""
    directory = _cache_dir() / f"demo-{_recipe_hash()}"
    if not directory.is_dir():
        make_demo_model(directory)
    return directory


def make_demo_model(directory: Path) -> None:
    """Write the demo model; it appears whole or not at all, also with two makers at once."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".demo-", dir=directory.parent))
    except OSError as error:
        raise ConfigError(
            f"cannot write the demo model to {directory}: {error.strerror};"
            " set XDG_CACHE_HOME to a writable folder, or --model"
        ) from error
    try:
        tokenizer = _write_tokenizer(draft)
        _write_model(draft, tokenizer)
        _publish(draft, directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, directory: Path) -> None:
    draft.chmod(0o755)
    try:
        draft.rename(directory)
    except OSError:
        if not (directory / "config.json").is_file():  # otherwise another maker was faster
            raise


def _cache_dir() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "qwenapi"


def _recipe_hash() -> str:
    recipe = b"".join(Path(source).read_bytes() for source in (__file__, demo_corpus.__file__))
    return hashlib.sha256(recipe).hexdigest()[:12]


def _write_tokenizer(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(_PATTERN), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = ByteLevelProcessor(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [mark for pair in _MARKS for mark in pair]
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY - len(_SPECIAL) - len(marks),
        min_frequency=1,
        max_token_length=_LONGEST_TOKEN_BYTES,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(demo_corpus.LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in _SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in marks])
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_tokenizer_config(directory)
    return tokenizer


def _write_tokenizer_config(directory: Path) -> None:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": _CONTEXT,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _write_model(directory: Path, tokenizer: Tokenizer) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    end, pad = (tokenizer.token_to_id(text) for text in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="float32",
    )
    config.save_pretrained(directory)
    GenerationConfig(
        eos_token_id=[end, pad],
        pad_token_id=pad,
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
    ).save_pretrained(directory)
    weights = _weights(Qwen3ForCausalLM(config))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _weights(model: "Qwen3ForCausalLM") -> "dict[str, torch.Tensor]":
    """Return seeded weights by name, the output layer not among them: it is the embedding."""
    import torch

    noise = torch.Generator().manual_seed(_SEED)
    return {
        name: torch.ones_like(parameter)
        if parameter.dim() == 1
        else torch.empty_like(parameter).normal_(std=_WEIGHT_STD, generator=noise)
        for name, parameter in sorted(model.named_parameters())
    }
