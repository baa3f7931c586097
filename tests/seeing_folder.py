"""A tiny model that sees, as a folder to serve: the demo's tokenizer, with tokens for pictures."""

import json
import shutil
from pathlib import Path

from tests.engine.seeing_models import write_seeing

DEMO = Path(__file__).parents[1] / "etc" / "models" / "demo"
SPECIAL = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
# As Qwen's own templates write a conversation, for what the tests send.
TEMPLATE = """
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{- message.content }}
{%- else %}
    {%- for item in message.content %}
        {%- if item.type == 'image' or 'image' in item or 'image_url' in item %}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
        {%- elif 'text' in item %}{{- item.text }}{%- endif %}
    {%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def write_folder(path, name="qwen3_vl"):
    """Write the folder; return the model itself and the ids of the tokens for pictures."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    first = 1 + max(token["id"] for token in tokenizer["added_tokens"])
    ids = tuple(range(first, first + len(SPECIAL)))
    like = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [
        {**like, "id": id_, "content": content} for id_, content in zip(ids, SPECIAL, strict=True)
    ]
    model = write_seeing(path, name, ids, vocab_size=ids[-1] + 1, eos_token_id=None)
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    shutil.copy(DEMO / "tokenizer_config.json", path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text("{}")
    return model, ids
