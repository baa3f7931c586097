"""A driver that compiles the grammars of its requests, over tiny models with the demo tokenizer."""

import json

from tests.engine.conftest import Driver
from workers.grammar.compiler import GrammarCompiler
from workers.grammar.tokenizer_file import TokenizerFile
from workers.wire.grammar import Grammar
from workers.wire.protocol import Generate, SamplingParams


class GrammarDriver(Driver):
    """A Driver whose requests may have a grammar; texts are decoded by the demo tokenizer."""

    def __init__(self, engine, compiler, tokenizer):
        super().__init__(engine)
        self.compiler, self.tokenizer = compiler, tokenizer

    def add(self, key, prompt, grammar=None, **fields):
        wire = {
            name: fields.pop(name) for name in list(fields) if name in Generate.__struct_fields__
        }
        params = {"max_tokens": 600, "temperature": 1.5, "ignore_eos": False, "seed": key} | fields
        request = Generate(
            wid=key,
            request_id=str(key),
            prompt_ids=tuple(prompt),
            params=SamplingParams(**params),
            grammar=grammar,
            **wire,
        )
        compiled = None if grammar is None else self.compiler.compile(grammar)
        self.engine.add(key, request, compiled)

    def text(self, key, choice=0):
        tokens = self.tokens(key, choice)
        if self.stop_token(key, choice) is not None:
            tokens = tokens[:-1]
        return self.tokenizer.decode(tokens, skip_special_tokens=False)

    def last(self, key, choice=0):
        return [chunk for chunk in self.chunks[key] if chunk.choice == choice][-1]

    def stop_token(self, key, choice=0):
        return self.last(key, choice).stop_token_id

    def reason(self, key, choice=0):
        return self.last(key, choice).finish_reason


def schema(value, **fields):
    return Grammar(kind="json_schema", text=json.dumps(value), **fields)


def compiler_of(card):
    return GrammarCompiler(
        TokenizerFile(f"{card.model_dir}/tokenizer.json", card.vocab_size, card.eos_token_ids)
    )
