"""GrammarError, and llguidance's words for a grammar that cannot be done put into a sentence."""

import re

_MAX_MESSAGE = 400
_UNSUPPORTED = re.compile(r"Unimplemented keys: (\[.*?\])")
_BAD_PATTERN = re.compile(r"regex parse error:.*?\berror: ([^\n]*)", re.DOTALL)
# What each of llguidance's messages means to a caller who does not know llguidance.
_MEANINGS = (
    (re.compile(r"oneOf constraints are not supported"), "oneOf is possible only where no value can"
     " match two of its branches: use anyOf"),
    (re.compile(r"NoExtension"), "no text can match it"),
    (re.compile(r"panic|too large|too big|symbols\.len"), "it is too large"),
    (re.compile(r"not supported with max_tokens"), "max_tokens= and stop= cannot be used in rules"),
    (re.compile(r"Default retriever|not present in a registry"), "a $ref may only point into the"
     " schema itself"),
    (re.compile(r"recursion limit|too deeply nested|nest limit"), "it is nested too deeply"),
)  # fmt: skip


class GrammarError(ValueError):
    """A grammar that cannot be done; its text says why, in words for the caller."""


class TooManyGrammars(GrammarError):
    """More grammars wait to be compiled than the engine takes; later it may take this one."""


def explain(message: str) -> GrammarError:
    """Return the error for what llguidance, or the compilation's end, said of a grammar."""
    if found := _UNSUPPORTED.search(message):
        keys = found[1].strip("[]").replace('"', "").split(", ")
        return GrammarError(f"the schema uses {', '.join(keys)}, which cannot be enforced")
    if found := _BAD_PATTERN.search(message):
        return GrammarError(f"the grammar has a regular expression that cannot be used: {found[1]}")
    for pattern, meaning in _MEANINGS:
        if pattern.search(message):
            return GrammarError(f"the grammar cannot be used: {meaning}")
    line = message.partition("\n<")[0].strip().replace("\n", " ")
    return GrammarError(f"the grammar cannot be used: {line[:_MAX_MESSAGE]}")
