"""View of `POST /generate`: a prompt in, one or several whole answers out."""

from flask import Blueprint, Response, request

from qwenapi.api.generate.schemas import GenerateRequest, GenerateSchema
from qwenapi.generation.delta import gather
from qwenapi.generation.prompt import encode_chat
from qwenapi.generation.sampling import SamplingRequest, clamped_header, defaults_of
from qwenapi.http.body import read_json
from qwenapi.http.responses import json_response
from qwenapi.request_context.current_request import (
    count_post,
    current_profile,
    generation_request,
    load_body,
    new_stream,
)
from qwenapi.request_context.services import served_model

blueprint = Blueprint("generate", __name__)

blueprint.before_request(count_post)

_schema = GenerateSchema()


@blueprint.post("/generate")
def generate() -> Response:
    ask: GenerateRequest = load_body(_schema, read_json(request, may_be_absent=True))
    profile = current_profile()
    card, tokenizer = served_model()
    messages = [{"role": "user", "content": ask.prompt}]
    ids = encode_chat(tokenizer, messages, profile.thinking, param="prompt")
    wanted, cut = generation_request(_sampling(ask), [ids], card)
    with new_stream(tokenizer) as stream:
        stream.ask(wanted)
        texts = [whole.text for whole in gather(stream.deltas())]
    parameters = ask.parameters(defaults_of(profile.settings), card.max_model_len - len(ids))
    response = json_response({"generated_texts": texts, "parameters": parameters})
    response.headers.update(clamped_header(cut))
    return response


def _sampling(ask: GenerateRequest) -> SamplingRequest:
    return SamplingRequest(
        max_tokens=ask.max_length,
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        n=ask.num_return_sequences,
    )
