"""Chat: from messages, tools and switches to a prompt, a grammar and a parser of the output.

What every dialect of conversations shares; none of their words. Reasoning and calls are told from
content by what the model's own chat template shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from qwenapi.errors import BadRequest, ToolsUnsupported
from qwenapi.generation.answer_format import AnswerFormat, grammar_for
from qwenapi.generation.prompt import beside_others
from qwenapi.generation.tools import Tool, ToolChoice, schemas_of, shapes_of
from qwenapi.images.reader import ImageReader
from qwenapi.images.source import sources_of, without_sources
from qwenapi.settings.table import Settings
from qwenapi.text.errors import TemplateError
from qwenapi.text.grammars import forced_calls, triggered_calls
from qwenapi.text.output.call_format import CallFormat, Tools, choose_format
from qwenapi.text.output.draft import END_OF_THOUGHT
from qwenapi.text.output.output_parser import THOUGHT, OutputParser, Thinking, thinking_of
from qwenapi.text.template_repair import repair
from qwenapi.text.tokenizer import Tokenizer
from qwenapi.text.tool_messages import to_template
from workers.wire.grammar import Grammar
from workers.wire.protocol import Image

# By vLLM's names of its parsers, as far as Qwen's models need them.
CALL_FORMATS: dict[str, CallFormat] = {"hermes": "hermes", "qwen3_coder": "xml", "qwen3_xml": "xml"}


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """What the settings say: which parsers, whether strict templates are humoured, and so on."""

    tool_call_parser: str = "auto"
    splits_reasoning: bool = True
    repairs: bool = True
    allows_auto_choice: bool = True

    @classmethod
    def of(cls, settings: Settings) -> "ChatOptions":
        """Return the options that a profile's settings hold."""
        return cls(
            tool_call_parser=settings.tool_call_parser,
            splits_reasoning=settings.reasoning_parser != "none",
            repairs=settings.template_repair,
            allows_auto_choice=settings.enable_auto_tool_choice,
        )


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """What a caller asks of the template. `template_arguments` are its own switches.

    `continues`: the last message is the beginning of the answer. `answer_format` is of the content.
    """

    messages: Sequence[Mapping[str, Any]] = field(repr=False)
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    add_generation_prompt: bool = True
    answer_format: AnswerFormat | None = None
    max_thought_tokens: int | None = None


@dataclass(frozen=True)
class PreparedChat:
    """A prompt's ids, and how what follows them is constrained and read."""

    ids: list[int]
    grammar: Grammar | None
    call_format: CallFormat | None
    tools: Tools
    thinking: Thinking
    images: tuple[Image, ...] = field(default=(), repr=False)

    def new_parser(self) -> OutputParser:
        """Return the parser of one choice's output."""
        return OutputParser(self.call_format, self.tools, self.thinking)


def prepare_chat(
    tokenizer: Tokenizer,
    chat: ChatPrompt,
    options: ChatOptions,
    reader: ImageReader | None = None,
) -> PreparedChat:
    """Return a conversation ready to be asked; raise BadRequest for what the template refuses, and
    for pictures that cannot be read; without a `reader`, for any.
    """
    source = tokenizer.template_source
    call_format = choose_format(source)
    if options.tool_call_parser != "auto":
        call_format = CALL_FORMATS.get(options.tool_call_parser)
    allowed = chat.tool_choice.allowed(chat.tools)
    if chat.tool_choice.mode == "auto" and chat.tools and not options.allows_auto_choice:
        raise BadRequest(
            "tool_choice 'auto' is switched off on this server (--no-enable-auto-tool-choice).",
            param="tool_choice",
        )
    if allowed and (call_format is None or "tools" not in source):
        raise ToolsUnsupported(param="tools")
    reader = reader or ImageReader()
    pictures = reader.read(sources_of(chat.messages))
    prompt = beside_others(
        _num_characters(chat.messages) + _num_characters([tool.source for tool in allowed]),
        lambda: _encode(tokenizer, chat, call_format, options),
    )
    ids, images = reader.place(prompt.ids, pictures)
    thinking: Thinking = thinking_of(prompt.text) if THOUGHT in source else "off"
    grammar = _grammar(tokenizer, chat, allowed, call_format)
    if chat.max_thought_tokens is not None and thinking != "off":
        free = Grammar(kind="any", text="")
        limit = chat.max_thought_tokens
        grammar = msgspec.structs.replace(grammar or free, max_thought_tokens=limit)
    if grammar is not None:
        grammar = _behind_thought(grammar, thinking, tokenizer)
    return PreparedChat(
        ids,
        grammar,
        call_format,
        schemas_of(allowed),
        thinking if options.splits_reasoning else "off",
        images,
    )


def _encode(
    tokenizer: Tokenizer, chat: ChatPrompt, call_format: CallFormat | None, options: ChatOptions
) -> Any:
    messages = to_template(without_sources(chat.messages), call_format)
    prefill = ""
    arguments: dict[str, Any] = dict(chat.template_arguments)
    if chat.continues:
        last = messages.pop()
        thought = last.get("reasoning_content")
        prefill = f"{THOUGHT}\n{thought}\n{END_OF_THOUGHT}\n\n" if thought else ""
        prefill += last["content"]
        if THOUGHT not in prefill and arguments.get("enable_thinking") is None:
            arguments["enable_thinking"] = False
    if options.repairs:
        messages = repair(messages)
    is_told = chat.tool_choice.mode != "none"
    arguments["tools"] = [tool.source for tool in chat.tools] if is_told and chat.tools else None
    arguments["add_generation_prompt"] = chat.continues or chat.add_generation_prompt
    try:
        return tokenizer.encode_chat(messages, prefill=prefill, **arguments)
    except TemplateError as error:
        raise BadRequest(str(error), param="messages") from error


def _grammar(
    tokenizer: Tokenizer,
    chat: ChatPrompt,
    allowed: Sequence[Tool],
    call_format: CallFormat | None,
) -> Grammar | None:
    """Return the grammar of calls where one is needed, else of the content, if any."""
    if not allowed or call_format is None:
        return grammar_for(chat.answer_format, tokenizer)
    is_forced = chat.tool_choice.mode == "required"
    is_bound = not chat.parallel_tool_calls or bool(chat.tool_choice.names)
    if is_forced:
        make = forced_calls
    elif is_bound or any(tool.strict for tool in allowed):
        make = triggered_calls
    else:
        return grammar_for(chat.answer_format, tokenizer)
    text = make(
        shapes_of(allowed), call_format, tokenizer.added_tokens, several=chat.parallel_tool_calls
    )
    return Grammar(kind="lark", text=text)


def _behind_thought(grammar: Grammar, thinking: Thinking, tokenizer: Tokenizer) -> Grammar:
    """Return a grammar that begins where the thought ends, if there is one."""
    if thinking == "off":
        return grammar
    start = tokenizer.added_tokens.get(THOUGHT) if thinking == "possible" else None
    if thinking == "possible" and start is None:
        return grammar
    end = tuple(tokenizer.encode(END_OF_THOUGHT, add_special_tokens=False))
    return msgspec.structs.replace(grammar, thought_start_id=start, thought_end_ids=end)


def _num_characters(value: Any) -> int:
    """Return the length of all strings in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _num_characters(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_num_characters, value))
    return 0
