"""What the views of an application share, made once by the factory."""

from dataclasses import dataclass

from flask import current_app

from qwenapi.engine_client import EngineClient
from qwenapi.models import Models
from qwenapi.settings import Settings

EXTENSION = "qwenapi"


@dataclass(frozen=True)
class Services:
    settings: Settings
    engine: EngineClient
    models: Models


def services() -> Services:
    """Return the services of the application that serves the current request."""
    found: Services = current_app.extensions[EXTENSION]
    return found
