"""A model's chat template, rendered as transformers' `apply_chat_template` renders it.

The template is the model's own file, yet runs in Jinja's immutable sandbox: it sees plain values
and can neither reach the interpreter nor hold it for long. Knows nothing of tokens. The globals and
filters are transformers', name by name.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from qwenapi.text.amplifiers import TooMuchError
from qwenapi.text.bounded_environment import BoundedEnvironment, bounded, guarded, joined
from qwenapi.text.errors import TemplateError, TokenizerError

log = logging.getLogger(__name__)

MAX_REFUSAL_CHARS = 200


class ChatTemplate:
    """One compiled template; it sees `variables` (special tokens) beside each call's own."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the model's chat template does not compile: line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # nested too deeply for Jinja, or for Python
            raise TokenizerError(
                f"the model's chat template does not compile: {type(error).__name__}"
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> str:
        """Return the prompt of a conversation; raise TemplateError if the template refuses it."""
        variables = {"tools": None, "documents": None, **self._variables, **arguments}
        try:
            with bounded():
                return joined(self._template.generate(messages=messages, **variables))
        except _RefusalError as error:
            raise TemplateError(
                f"The model's chat template refuses this conversation: {error.message}"
            ) from error
        except TooMuchError as error:
            log.warning("chat template stopped: it takes too long, or writes too much")
            raise TemplateError(
                "The model's chat template takes too long, or writes too much."
            ) from error
        except (
            Exception
        ) as error:  # a template is a program of the model's authors: it may raise anything
            log.warning("chat template failed: %s", type(error).__name__)
            raise TemplateError(
                "The model's chat template cannot render this conversation."
            ) from error


class _RefusalError(jinja2.TemplateError):
    """The template itself called `raise_exception`."""


class _GenerationTag(Extension):
    """Render what `{% generation %}…{% endgeneration %}` holds; only training needs the tag."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict` for templates, without the type's attributes to climb on."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """`namespace` for templates, which stores no underscored attribute."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=1)` works
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = guarded("tojson", _to_json)
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_TemplateDict(),
        namespace=_TemplateNamespace,
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Replace Jinja's `tojson`, which escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise _RefusalError(str(message)[:MAX_REFUSAL_CHARS])


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a chat template stores no underscored attribute on a namespace")
