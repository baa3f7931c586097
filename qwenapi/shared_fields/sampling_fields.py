"""The schema of how tokens are chosen: OpenAI's fields and, of vLLM's, those it has everywhere."""

from qwenapi.http.fields import StrictBoolean, StrictFloat, StrictInteger
from qwenapi.http.schemas import RequestSchema

INT32 = 2**31 - 1
INT64 = 2**63 - 1


class ChoosingSchema(RequestSchema):
    """Fields of chats, completions and responses."""

    temperature = StrictFloat(0, 2)
    top_p = StrictFloat(0, 1)
    presence_penalty = StrictFloat(-2, 2)
    frequency_penalty = StrictFloat(-2, 2)
    seed = StrictInteger(-INT64 - 1, INT64)
    stream = StrictBoolean()

    top_k = StrictInteger(-1, INT32)
    min_p = StrictFloat(0, 1)
    repetition_penalty = StrictFloat(0.01, 2)
    min_tokens = StrictInteger(0, INT32)
    ignore_eos = StrictBoolean()
    priority = StrictInteger(-INT32 - 1, INT32)
