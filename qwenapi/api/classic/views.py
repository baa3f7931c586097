"""`POST /generate`: a prompt in, one or several whole answers out."""

from flask import Blueprint, Response, g, request

from qwenapi.answer import Answer, Question
from qwenapi.api.classic.schemas import GenerateRequest, GenerateSchema
from qwenapi.engine_client import random_seed
from qwenapi.prompt import encode_chat, served_model
from qwenapi.responses import ignored_header, json_response
from qwenapi.sampling import SamplingRequest, clamped_header, defaults_of, engine_params
from qwenapi.services import current_profile, services, use_profile
from qwenapi.validation import load_request, parse_json, read_body

blueprint = Blueprint("classic", __name__)

_schema = GenerateSchema()


@blueprint.before_request
def choose_profile() -> None:
    profile = services().profiles.of_interface("classic")
    assert profile is not None  # otherwise this blueprint is not registered
    use_profile(profile)


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
    question = Question(
        prompts=[(ids, params)],
        request_id=g.request_id,
        n=ask.num_return_sequences,
        limits=profile.limits,
    )
    with Answer(services().engine, tokenizer, request.environ) as answer:
        answer.ask(question)
        texts = [text for text, _ in answer.wholes()]
        g.log.add(prompt_tokens=len(ids), completion_tokens=answer.completion_tokens)
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
