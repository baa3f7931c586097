"""instructor: typed answers by a tool, by JSON Schema and by JSON mode."""

import instructor
from proof import MODEL, PERSON, proves, tell
from pydantic import BaseModel


class Person(BaseModel):
    """A person"""

    name: str
    age: int


def typed(mode: instructor.Mode) -> None:
    client = instructor.from_provider(f"openai/{MODEL}", mode=mode)
    messages = [{"role": "user", "content": PERSON}]
    options = {"response_model": Person, "temperature": 0, "max_retries": 0}
    person = client.create(messages=messages, **options)
    assert person.model_dump() == {"name": "Alice", "age": 30}


@proves("schema", "Mode.TOOLS")
def tools():
    typed(instructor.Mode.TOOLS)


@proves("schema", "Mode.TOOLS_STRICT")
def strict():
    typed(instructor.Mode.TOOLS_STRICT)


@proves("schema", "Mode.JSON_SCHEMA")
def json_schema():
    typed(instructor.Mode.JSON_SCHEMA)


@proves("json", "Mode.JSON")
def json_mode():
    typed(instructor.Mode.JSON)


@proves("stream", "create_partial")
def partial():
    client = instructor.from_provider(f"openai/{MODEL}", mode=instructor.Mode.JSON_SCHEMA)
    messages = [{"role": "user", "content": PERSON}]
    *_, last = client.create_partial(messages=messages, response_model=Person, temperature=0)
    assert last.model_dump() == {"name": "Alice", "age": 30}


tell("instructor")
