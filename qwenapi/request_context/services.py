"""Services: what all requests of an application share, made once per process."""

from dataclasses import dataclass, field

from flask import current_app

from qwenapi.batches.store import BatchStore
from qwenapi.conversations import ConversationStore
from qwenapi.engines.client import EngineClient
from qwenapi.errors import TaskUnsupported
from qwenapi.generation.tokenizers import Tokenizers
from qwenapi.images.reader import ImageLimits, ImageReader
from qwenapi.keys import KeyQueue, KeyRing, KeyUsage
from qwenapi.metrics.store import MetricsStore
from qwenapi.observability.tracing import Tracer
from qwenapi.settings.profile import Profiles
from qwenapi.settings.table import Settings
from qwenapi.text.tokenizer import Tokenizer
from workers.wire.protocol import ModelCard

EXTENSION = "qwenapi"


@dataclass(frozen=True)
class Services:
    """`store` is there when an interface with conversations is served, `tracer` when traces are
    sent somewhere, `batches` when files are kept. `key_queues`: who waits here for a place among
    its key's running requests.
    """

    settings: Settings
    profiles: Profiles
    engine: EngineClient
    tokenizers: Tokenizers
    metrics_store: MetricsStore
    store: ConversationStore | None = None
    tracer: Tracer | None = None
    keys: KeyRing = field(default_factory=KeyRing)
    usage: KeyUsage = field(default_factory=lambda: KeyUsage(None))
    key_queues: dict[str, KeyQueue] = field(default_factory=dict)
    batches: BatchStore | None = None


def services() -> Services:
    """Return the services of the application that serves the current request."""
    found: Services = current_app.extensions[EXTENSION]
    return found


def conversations() -> ConversationStore:
    """Return the store of an application that has one."""
    store = services().store
    assert store is not None
    return store


def served_model(task: str | None = "generate") -> tuple[ModelCard, Tokenizer]:
    """Return what the engines serve; raise EngineUnavailable while none is connected, and
    TaskUnsupported if that is not for the task; None: whatever it is for.
    """
    card = services().engine.card
    tokenizer = services().tokenizers.of(card)
    assert card is not None  # of() has raised
    if task not in (None, card.task):
        raise TaskUnsupported(card.task)
    return card, tokenizer


def image_reader(card: ModelCard) -> ImageReader:
    """Return what reads the pictures of one request to a model."""
    found = services()
    return ImageReader(found.tokenizers.vision_of(card), ImageLimits.of(found.settings))
