"""What a response is asked with, where it is longer than the context."""

from types import SimpleNamespace

from qwenapi.api.responses import prompt


def test_system_messages_alone_that_do_not_fit_are_left_to_be_refused(monkeypatch):
    long = SimpleNamespace(ids=range(100))
    monkeypatch.setattr(prompt, "_prepared", lambda *of: long)
    ask = SimpleNamespace(drops_oldest=True)
    text = {"type": "input_text", "text": "x"}
    items = [
        {"type": "message", "role": role, "content": [text]} for role in ("system", "developer")
    ]
    assert prompt.prepare(ask, items, profile=None, tokenizer=None, context=50) is long
