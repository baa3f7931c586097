"""The tiny models and drivers of the engine's tests, for tests of the model alone."""

from tests.engine.conftest import drive, model_of, prompts  # noqa: F401
