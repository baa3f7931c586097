"""`POST /generate`: a prompt in, one or several whole answers out."""

from flask import Blueprint, Response, g, request

from qwenapi.api.generate.schemas import GenerateRequest, GenerateSchema
from qwenapi.engines.client import random_seed
from qwenapi.generation.sampling import SamplingRequest, clamped_header, defaults_of, engine_params
from qwenapi.generation.stream import GenerationRequest, gather
from qwenapi.http.responses import ignored_header, json_response
from qwenapi.http.validation import load_request, parse_json, read_body
from qwenapi.request_context.prompt import encode_chat, served_model
from qwenapi.request_context.services import answers_as, current_profile, new_generation

blueprint = Blueprint("generate", __name__)

_schema = GenerateSchema()


blueprint.before_request(answers_as("generate"))


@blueprint.post("/generate")
def generate() -> Response:
    body = parse_json(read_body(request))
    ask: GenerateRequest = load_request(_schema, body)
    profile = current_profile()
    card, tokenizer = served_model()
    messages = [{"role": "user", "content": ask.prompt}]
    ids = encode_chat(tokenizer, messages, profile.thinking, param="prompt")
    defaults = defaults_of(profile.settings)
    params, clamped = engine_params(
        _sampling(ask), prompt_tokens=len(ids), card=card, defaults=defaults, new_seed=random_seed
    )
    question = GenerationRequest(
        prompts=[(ids, params)],
        model_hash=card.model_hash,
        request_id=g.request_id,
        n=ask.num_return_sequences,
        limits=profile.limits,
    )
    with new_generation(tokenizer) as answer:
        answer.ask(question)
        texts = [whole.text for whole in gather(answer.deltas())]
    response = json_response({"generated_texts": texts, "parameters": ask.parameters(defaults)})
    response.headers.update(ignored_header(body, _schema.fields))
    if clamped:
        response.headers["X-Clamped"] = clamped_header(clamped)
    return response


def _sampling(ask: GenerateRequest) -> SamplingRequest:
    return SamplingRequest(
        max_tokens=ask.max_length,
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        n=ask.num_return_sequences,
    )
