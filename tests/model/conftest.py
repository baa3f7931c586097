"""The tiny models and engines of tests/engine, for the parts that engines are made of."""

from tests.engine.conftest import drive, model_of, prompts  # noqa: F401
