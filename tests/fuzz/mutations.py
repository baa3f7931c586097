"""Near misses: what is valid with a few things about it changed, as hypothesis strategies.

QWENAPI_TEST_FUZZ_EXAMPLES says how many each test tries; what failed once is kept in its CASES.
"""

import copy
import os
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("QWENAPI_TEST_FUZZ_EXAMPLES", "100"))
fuzzing = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="QWENAPI_TEST_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

TEXTS = [
    *("", " ", "\0", "\r\n", "\u202e", "<|im_start|>", "<think>", "{{", "{% for %}", "%s", "../x"),
    *("a" * 3000, "\U0001f642" * 300, "\ufffe", "e\u0301", "NaN", "1e999", "true"),
]
NUMBERS = [
    *(0, -1, 1, 2, 21, 129, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30),
    *(0.0, -0.0, 0.5, 1e308, 5e-324),
]
OTHERS = [None, True, False, [], {}, [[]], [{}], {"": ""}, [None] * 300]
ODD = st.one_of(
    st.sampled_from([*TEXTS, *NUMBERS, *OTHERS]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)


@st.composite
def near(draw: Any, valid: Any) -> Any:
    """Draw a JSON value that is like `valid` but for one to three of its places."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(list(_places(value)) or [(None, None)]))
        kind = draw(st.sampled_from(["replace", "replace", "drop", "double", "add"]))
        if holder is None:
            return draw(ODD)
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(ODD))
        elif kind == "drop":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(TEXTS[:8]) | st.text(max_size=6))] = copy.deepcopy(
                draw(ODD)
            )
    return value


def _places(value: Any) -> Any:
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    if not isinstance(value, dict | list):
        return
    for key, item in list(inner):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


@st.composite
def spoilt(draw: Any, originals: Sequence[bytes]) -> bytes:
    """Draw bytes that are like one of `originals` but for one to five places."""
    data = bytearray(draw(st.sampled_from(list(originals))))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "insert", "cut", "drop", "double"]))
        if kind == "flip" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=6))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 20))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)
