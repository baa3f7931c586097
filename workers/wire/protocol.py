"""Messages between the HTTP half and an engine: frozen, token ids in and token ids out.

Refuses to know bytes, sockets, text, HTTP and torch. A field added with a default at the end of a
message keeps older peers working (version N speaks N-1).

    HTTP process                                   engine process
      Attach ──────────────────────────────────────►
      ◄────────────────────────────────────── Hello     version, generation, model card, limits
      Generate ────────────────────────────────────►
      ◄─────────────────────── Accepted │ Rejected      decided before any HTTP header goes out
      ◄───────────────────────── StepUpdate, StepUpdate, …   one frame per step and connection
      Abort ───────────────────────────────────────►    (or the connection ends: the same for all)
      Ping ⇄ Pong                                       both ways; the engine's Pong is its loop's
      ◄──────────────────────────────────── SlotUpdate      to another machine, four times a second
"""

from typing import Literal

import msgspec

from workers.wire.grammar import Grammar

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1
MAX_CHOICES = 128
MAX_LOGPROBS = 20
# The low bits of a wire id count the attempts at a request.
EPOCH_BITS = 8
MAX_EPOCH = (1 << EPOCH_BITS) - 1

FinishReason = Literal["stop", "length"]
RejectReason = Literal["queue_full", "overloaded", "too_long", "draining", "invalid"]
FailReason = Literal[
    "queue_timeout",
    "engine_error",
    "engine_lost",
    "draining",
    "server_shutdown",
    # What the HTTP half says of a request it could not let another engine go on with:
    "engine_crash",
    "engine_unavailable",
    "model_changed",
]


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages; subclasses set their tag."""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """How tokens of one request are chosen; every field neutral by default.

    `seed` is always set by the HTTP half (a random one when the caller gave none), so that a replay
    draws the same noise. `logprobs`: None = none, 0 = the chosen token's, k = also the k most
    likely alternatives (at most 20); `prompt_logprobs` means the same of the prompt's tokens, which
    are then all computed, whatever a cache has. Only `allowed_token_ids` are chosen, if there are
    any; of no word of `bad_words` the last token behind the others. Grammars come before both.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()

    @property
    def is_penalized(self) -> bool:
        """Return whether what was generated before changes a token's logits."""
        penalties = self.repetition_penalty, self.presence_penalty, self.frequency_penalty
        return penalties != (1.0, 0.0, 0.0) or any(len(word) > 1 for word in self.bad_words)


class Pooling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is asked of the last token of a prompt that is not gone on with.

    The logits of `token_ids`, or where there are none its hidden state: the first `dimensions` of
    it (0: all), brought to length 1.
    """

    token_ids: tuple[int, ...] = ()
    dimensions: int = 0


class Image(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A picture in a prompt: `rows * columns` tokens, from number `position` on, stand for it.

    `pixels` are its bytes red, green, blue, line by line; a token is a square of a side that the
    model says. `digest` names exactly these pixels of this shape.
    """

    position: int
    rows: int
    columns: int
    digest: bytes
    pixels: bytes

    @property
    def num_tokens(self) -> int:
        return self.rows * self.columns


class ModelCard(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """What an engine serves.

    `model_dir` is absolute: the HTTP half reads tokenizer and template from it. `generation_config`
    holds the sampling defaults of generation_config.json (temperature, top_k, …) as floats.
    `num_state_slots`, of a hybrid model, counts the states its sequences and prefixes may have.
    `task` is generate, embed or rerank: every request of the last two has a pooling, of the first
    none. `output_size` is how many numbers a token has in the end: logits, or of a hidden state.
    Of a model that sees, `image_side` is how many pixels wide and high a token's part of a picture
    is, and `image_token_id` what stands for it in a prompt; 0 and -1 of others.
    """

    model_dir: str
    model_hash: str
    tokenizer_sha256: str
    architecture: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    generation_config: dict[str, float]
    dtype: str
    device: str
    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_state_slots: int = 0
    task: str = "generate"
    output_size: int = 0
    image_side: int = 0
    image_token_id: int = -1


class Attach(Message, frozen=True, tag="attach"):
    """First frame of the HTTP process: the protocol versions it speaks, its name for the log, and
    whether it cannot read the engine's shared memory and is to be sent what changes there.
    """

    version_min: int
    version_max: int
    name: str
    wants_slot: bool = False


class Hello(Message, frozen=True, tag="hello"):
    """First frame of the engine. Nothing counts as running before it has arrived.

    `generation` differs after every start of the engine process; `shared_memory_path` is where its
    heartbeat and statistics are, of the machine it runs on: `node`, empty where it is this one.
    """

    version: int
    generation: int
    engine_index: int
    shared_memory_path: str
    card: ModelCard
    node: str = ""


class SlotUpdate(Message, frozen=True, tag="slot"):
    """What an engine's slot of shared memory holds, by its layout, for who cannot read it there.

    Sent several times a second. Clocks of machines differ: `age_ns` is how long ago the engine's
    loop showed a sign of life, in the place of the slot's own time.
    """

    layout_hash: int
    age_ns: int
    values: tuple[int, ...]


class Generate(Message, frozen=True, tag="generate", kw_only=True):
    """Ask for one answer with one or more choices.

    `wid` is the wire id of this attempt (see `wire_id`). `choices` names the choice indexes to
    produce: 0…n-1 for a new request, the unfinished ones for a replay, when `resume` holds the ids
    each of them already has. `group` is a set of requests that share `max_running` and
    `max_waiting` (0 = the engine's own limits). `cache_salt` separates prefix caches: blocks are
    shared only between requests of equal salt. `queue_timeout` is in seconds. Every choice keeps to
    the `grammar`. With a `pooling` there is no answer of tokens, only a Finished. `images` are in
    the order of their positions.
    """

    wid: int
    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    choices: tuple[int, ...] = (0,)
    resume: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    group: str = ""
    max_running: int = 0
    max_waiting: int = 0
    queue_timeout: float = 300.0
    grammar: Grammar | None = None
    pooling: Pooling | None = None
    images: tuple[Image, ...] = ()

    @property
    def epoch(self) -> int:
        """Return which attempt this is; all but the first are replays, once admitted already."""
        return self.wid & MAX_EPOCH

    @property
    def weight(self) -> int:
        """Return the tokens this request may occupy."""
        return len(self.prompt_ids) + len(self.choices) * self.params.max_tokens


class Abort(Message, frozen=True, tag="abort"):
    """The caller has gone, or has enough: free the request or some choices within one step.

    Unknown ids are ignored. A request without any choice left is gone without a word.
    """

    wid: int
    choices: tuple[int, ...] = ()


class Ping(Message, frozen=True, tag="ping"):
    nonce: int


class Pong(Message, frozen=True, tag="pong"):
    nonce: int


class Accepted(Message, frozen=True, tag="accepted"):
    """The request will run; exactly one `Finished` or `Failed` follows unless it is aborted."""

    wid: int


class Rejected(Message, frozen=True, tag="rejected", kw_only=True):
    """The request is refused before anything ran. `retry_after` is in seconds.

    `message`, if there is one, tells the caller in a sentence what cannot be done.
    """

    wid: int
    reason: RejectReason
    queue_size: int = 0
    max_queue_size: int = 0
    retry_after: int = 1
    message: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability (natural, of the model's raw distribution) of a chosen token and of the most
    likely ones, best first.
    """

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Chunk(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """New tokens of one choice, the first of them its output token number `position`.

    The last chunk of a choice has a `finish_reason`; a token that stopped it (eos, stop_token_ids)
    is included as its last id.
    """

    wid: int
    choice: int
    position: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How likely a request's prompt was, from its token number `position` on.

    They come in order and before the first chunk; the prompt's token 0 has none. A replay begins
    again at token 1.
    """

    wid: int
    position: int
    logprobs: tuple[TokenLogprob, ...]


class Started(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request has left the queue; `cached_tokens` of its prompt need not be computed."""

    wid: int
    cached_tokens: int


class Finished(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """All choices of a request have ended, at least one of them by itself.

    Token counts: the prompt counts once; `completion_tokens` includes those of resumed and aborted
    choices. `pooled` are the numbers a pooling asked for, little-endian float32.
    """

    wid: int
    prompt_tokens: int
    completion_tokens: int
    pooled: bytes = b""


class Failed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    wid: int
    reason: FailReason


class StepUpdate(Message, frozen=True, tag="step", kw_only=True):
    """Everything one engine step has for one connection."""

    started: list[Started] = []
    chunks: list[Chunk] = []
    finished: list[Finished] = []
    failed: list[Failed] = []
    prompt_logprobs: list[PromptLogprobs] = []


ToEngine = Attach | Generate | Abort | Ping | Pong
FromEngine = Hello | Accepted | Rejected | StepUpdate | Ping | Pong | SlotUpdate


def wire_id(serial: int, epoch: int) -> int:
    """Return the id of attempt `epoch` (0-255) of the connection's request number `serial`."""
    return serial << EPOCH_BITS | epoch & MAX_EPOCH
