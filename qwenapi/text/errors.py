"""Errors of qwenapi/text: each message is fit for the eyes of whoever caused it.

TextError
├── JsonError        a body or argument that is not the JSON we accept    the caller's to mend
├── GrammarShapeError  a structural tag or tool schema of no known shape  the caller's to mend
├── TemplateError    a conversation the model's template cannot render    the caller's to mend
└── TokenizerError   tokenizer files that cannot be served                the operator's to mend
"""


class TextError(Exception):
    """Base of everything `qwenapi.text` raises on purpose."""


class JsonError(TextError):
    """Bytes that are not strict JSON, or exceed its limits."""


class GrammarShapeError(TextError):
    """A structural tag, or a tool's schema, that is not of the shape it has to have."""


class TemplateError(TextError):
    """A conversation that the model's chat template refuses or cannot render."""


class TokenizerError(TextError):
    """A model directory whose tokenizer or template files cannot be used; names the file."""
