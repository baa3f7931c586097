"""Each promise of docs/reliability.md names tests that exist."""

import ast

import pytest

from tests.docs.pages import ROOT
from tests.docs.promises import PROMISES


def test_every_promise_is_there():
    assert list(PROMISES) == [f"T{number}" for number in range(1, 49)]


@pytest.mark.parametrize("name", PROMISES)
def test_what_shows_a_promise_exists(name):
    promise = PROMISES[name]
    assert promise.tests and bool(promise.unlike) is bool(promise.unlike_zh)
    for test in promise.tests:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert f"test_{function}" in names, test
