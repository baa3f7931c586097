"""Tiny models and the engines over them, as the tests of the engine have them."""

from tests.engine.conftest import drive, model_of, prompts  # noqa: F401
