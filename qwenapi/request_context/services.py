"""What the views of an application share, made once by the factory, and the profile in force."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flask import current_app, g, request

from qwenapi.conversations import ConversationStore
from qwenapi.engines.client import EngineClient
from qwenapi.errors import ApiError
from qwenapi.generation.stream import GenerationStream
from qwenapi.generation.tokenizers import Tokenizers
from qwenapi.keys import Key, KeyRing, KeyUsage
from qwenapi.keys.rate_limit import Line
from qwenapi.metrics.store import MetricsStore, RequestMetrics
from qwenapi.observability.tracing import Tracer
from qwenapi.settings.profile import Interface, Profile, Profiles
from qwenapi.settings.table import Settings
from qwenapi.text.tokenizer import Tokenizer

EXTENSION = "qwenapi"


@dataclass(frozen=True)
class Services:
    """`store` is there when an interface with conversations is served, `tracer` when traces are
    sent somewhere. `lines`: who waits here for a place among its key's running requests.
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
    lines: dict[str, Line] = field(default_factory=dict)


def services() -> Services:
    """Return the services of the application that serves the current request."""
    found: Services = current_app.extensions[EXTENSION]
    return found


def conversations() -> ConversationStore:
    """Return the store of an application that has one."""
    store = services().store
    assert store is not None
    return store


def use_profile(profile: Profile) -> None:
    """GenerationStream the current request as this profile says, its errors included."""
    g.profile = profile


def answers_as(interface: Interface) -> Callable[[], None]:
    """Return what puts each request of a blueprint under the profile of its interface."""

    def choose() -> None:
        profile = services().profiles.of_interface(interface)
        assert profile is not None  # otherwise the blueprint is not registered
        use_profile(profile)
        if request.method == "POST":
            services().profiles.check_model(profile, caller().models)
            count_request()

    return choose


def caller() -> Key:
    """Return the key of the current request, ANYONE's where none are asked for."""
    key: Key = g.key
    return key


def count_request() -> None:
    """Count the current request against its key's limit, once its dialect is known."""
    g.rate_limit.count_request()


def new_generation(tokenizer: Tokenizer) -> GenerationStream:
    """Return an answer to the current request, with its entry in the metrics store."""
    shared = services()
    g.entry = shared.metrics_store.begin(current_profile().name, g.log.arrival)
    return GenerationStream(shared.engine, tokenizer, g.entry, g.rate_limit, request.environ)


def count_failure(error: ApiError) -> None:
    """Count a request that the service failed to answer, whether or not it got to an engine."""
    entry: RequestMetrics = g.get("entry") or services().metrics_store.begin(
        current_profile().name, g.log.arrival
    )
    entry.accept(0)
    entry.fail(error.code or error.type)


def current_profile() -> Profile:
    """Return the profile of the current request; before one was chosen, the general one."""
    chosen: Profile | None = g.get("profile")
    return chosen or services().profiles.unread
