"""What the views of an application share, made once by the factory, and the profile in force."""

from dataclasses import dataclass

from flask import current_app, g

from qwenapi.conversations import ConversationStore
from qwenapi.engine_client import EngineClient
from qwenapi.profile import Profile, Profiles
from qwenapi.settings import Settings
from qwenapi.tokenizers import Tokenizers

EXTENSION = "qwenapi"


@dataclass(frozen=True)
class Services:
    """`store` is there when an interface with conversations is served."""

    settings: Settings
    profiles: Profiles
    engine: EngineClient
    tokenizers: Tokenizers
    store: ConversationStore | None = None


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
    """Answer the current request as this profile says, its errors included."""
    g.profile = profile


def current_profile() -> Profile:
    """Return the profile of the current request; before one was chosen, the general one."""
    chosen: Profile | None = g.get("profile")
    return chosen or services().profiles.unread
