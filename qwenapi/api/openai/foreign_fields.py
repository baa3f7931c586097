"""Fields that OpenAI, vLLM, SGLang, llama.cpp or Ollama know and that are not built here.

The one table of them. A field of UNSUPPORTED would change the answer: it is refused by its name,
but for the values that ask for nothing. WITHOUT_EFFECT lists names that a client may send in good
faith and that change no answer here: they are ignored and named in X-Ignored, also by a profile
that refuses what it does not know. Whoever builds a feature takes its line out and gives the schema
a field.
"""

from qwenapi.http.fields import Neutral

_BEAMS = "beam search"
_SCHEMA = "structured output"
_SAMPLER = "a sampler"
_TEMPLATE = "another chat template"
_IDS = "token ids in the answer"

# Of both interfaces.
UNSUPPORTED: dict[str, Neutral] = {
    # OpenAI
    # vLLM
    "echo": Neutral(False, feature="echo"),
    "use_beam_search": Neutral(False, feature=_BEAMS),
    "length_penalty": Neutral(1, feature=_BEAMS),
    "early_stopping": Neutral(False, feature=_BEAMS),
    "prompt_logprobs": Neutral(feature="log-probabilities of the prompt"),
    "truncation_side": Neutral(feature="cutting the prompt"),
    "logprob_token_ids": Neutral([], feature="log-probabilities of chosen tokens"),
    "return_tokens_as_token_ids": Neutral(False, feature=_IDS),
    "return_prompt_text": Neutral(False, feature="the prompt in the answer"),
    "logits_processors": Neutral([], feature="logits processors"),
    "kv_transfer_params": Neutral({}, feature="a transfer of the cache"),
    "prompt_embeds": Neutral([], feature="embeddings as a prompt"),
    "repetition_detection": Neutral(False, {}, feature="detection of repetitions"),
    "routed_experts_prompt_start": Neutral(0, feature="routed experts in the answer"),
    "return_routed_experts": Neutral(False, feature="routed experts in the answer"),
    # SGLang
    "regex": Neutral("", feature=_SCHEMA),
    "ebnf": Neutral("", feature=_SCHEMA),
    "stop_regex": Neutral([], "", feature="stop expressions"),
    "no_stop_trim": Neutral(False, feature="stop strings in the text"),
    "lora_path": Neutral("", [], feature="adapters"),
    "custom_logit_processor": Neutral("", feature="logits processors"),
    "return_hidden_states": Neutral(False, feature="hidden states in the answer"),
    # llama.cpp
    "json_schema": Neutral({}, "", feature=_SCHEMA),  # SGLang's too
    "grammar": Neutral("", feature=_SCHEMA),
    "n_predict": Neutral(-1, feature="n_predict (use max_tokens)"),
    "n_probs": Neutral(0, feature="n_probs (use logprobs)"),
    "lora": Neutral([], feature="adapters"),
    "samplers": Neutral([], "", feature=_SAMPLER),
    "typical_p": Neutral(1, 0, feature=_SAMPLER),
    "mirostat": Neutral(0, feature=_SAMPLER),
    "dry_multiplier": Neutral(0, feature=_SAMPLER),
    "xtc_probability": Neutral(0, feature=_SAMPLER),
    "dynatemp_range": Neutral(0, feature=_SAMPLER),
    "top_n_sigma": Neutral(-1, 0, feature=_SAMPLER),
    "tfs_z": Neutral(1, feature=_SAMPLER),
    "repeat_penalty": Neutral(1, feature="repeat_penalty (use repetition_penalty)"),
    # Ollama
    "format": Neutral("", feature=_SCHEMA),
    "options": Neutral({}, feature="options (send them as fields of the request)"),
    "template": Neutral("", feature=_TEMPLATE),
    "images": Neutral([], feature="images"),
}
CHAT_UNSUPPORTED: dict[str, Neutral] = UNSUPPORTED | {
    "functions": Neutral([], feature="functions (use tools)"),
    "function_call": Neutral("none", "auto", feature="function_call (use tool_choice)"),
    "modalities": Neutral(["text"], [], feature="answers that are no text"),
    "audio": Neutral(feature="audio"),
    "web_search_options": Neutral(feature="a search of the web"),
    "chat_template": Neutral("", feature=_TEMPLATE),
    "add_special_tokens": Neutral(False, feature="special tokens around the prompt"),
    "documents": Neutral([], feature="documents"),
    "input_ids": Neutral([], feature="token ids in a chat"),
    "think": Neutral(feature="think (use enable_thinking)"),
}
COMPLETION_UNSUPPORTED: dict[str, Neutral] = UNSUPPORTED | {
    "suffix": Neutral(feature="a suffix"),
    "system": Neutral("", feature="a system message (use chat completions)"),
    "context": Neutral([], feature="a context of token ids"),
}
# Keys of a message; what they ask for would be part of the prompt.
MESSAGE_UNSUPPORTED: dict[str, Neutral] = {
    "function_call": Neutral(feature="function_call (use tool_calls)"),
    "images": Neutral([], feature="images"),
}

WITHOUT_EFFECT = frozenset(
    """
    user metadata safety_identifier prompt_cache_key prompt_cache_retention store service_tier
    verbosity prediction session_id include_obfuscation
    spaces_between_special_tokens stream_interval
    mirostat_tau mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
    xtc_threshold dynatemp_exponent repeat_last_n penalize_nl
    cache_prompt id_slot keep_alive num_ctx
    id annotations audio refusal cache_control
    """.split()
)
