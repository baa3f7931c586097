import json
import random

import jiter
import pytest

from qwenapi.text.output.object_text import ObjectText, closed_object

VALUES = [
    {},
    {"city": "Paris", "days": -3, "exact": True, "when": None, "x": 1.5e-7},
    {"a": [1, [2, {"b": '}]",{['}], "x"], "c": {"d": {"e": []}}, "f": '\\"\n', "g": "北京👀"},
    {"big": 123456789012345678901234567890, "": "", "k\n": [[[[]]]]},
]


@pytest.mark.parametrize("value", VALUES)
def test_every_beginning_is_closed_as_anthropics_client_reads_it(value):
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only)
        assert json.loads(closed_object(text)) == value
        for end in range(1, len(text)):
            seen = jiter.from_json(text[:end].encode(), partial_mode=True)
            assert json.loads(closed_object(text[:end])) == seen, text[:end]
    assert closed_object("") == "{}"


def test_half_a_surrogate_pair_is_no_longer_one():
    text = '{"a": "\\ud83d", "b": "\\ude00x", "c": "\\ud83d\\ude00", "d": "\\\\ud83d"}'
    expected = {"a": "\ufffd", "b": "\ufffdx", "c": "😀", "d": "\\ud83d"}
    for size in range(1, len(text)):
        pieces = ObjectText()
        said = "".join(pieces.push(text[at : at + size]) for at in range(0, len(text), size))
        assert json.loads(said) == expected


def test_what_comes_out_can_always_be_parsed_whatever_goes_in_and_however_it_is_cut():
    dice = random.Random(3)
    for _ in range(2000):
        text = list(json.dumps(dice.choice(VALUES)))
        for _ in range(dice.randint(0, 3)):  # broken in some places
            text[dice.randrange(len(text))] = dice.choice('x{}[]",:\\1')
        text[0] = "{"
        whole, pieces = ObjectText(), ObjectText()
        pushed = whole.push("".join(text))
        again = ""
        while text:
            size = dice.randint(1, 9)
            again += pieces.push("".join(text[:size]))
            jiter.from_json(again.encode() or b"{", partial_mode=True)
            del text[:size]
        assert again == pushed
        assert isinstance(json.loads(closed_object(again)), dict)
