"""Templates that loop for ever or grow without end are stopped, and no other is touched."""

import resource
import time

import pytest

from qwenapi.text import bounded_environment
from qwenapi.text.bounded_environment import MAX_CHARS, MAX_SECONDS
from qwenapi.text.chat_template import ChatTemplate
from qwenapi.text.errors import TemplateError

MESSAGES = [{"role": "user", "content": "hi"}]
NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
ENDLESS = {
    "loops": NEST + "{% endfor %}" * 3,
    "loops that write": NEST + "x" + "{% endfor %}" * 3,
    "loops that filter": NEST.replace(") %}", ") if false %}").replace("if false", "if a or 1", 1)
    + "{% endfor %}" * 3,
    "loops in a set": "{% set x %}" + NEST + "x" + "{% endfor %}" * 3 + "{% endset %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "doubling by +": "{% set n = namespace(t='x') %}{% for i in range(99) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "doubling by ~": "{% set n = namespace(t='x') %}{% for i in range(99) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "times": "{{ 'x' * 10 ** 12 }}",
    "times a list": "{{ ([1] * 10 ** 12) | length }}",
    "powers": "{{ 9 ** 9 ** 9 }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_would_never_end_is_stopped(name, monkeypatch):
    monkeypatch.setattr(bounded_environment, "MAX_SECONDS", 0.3)
    template = ChatTemplate(ENDLESS[name], {})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TemplateError, match="takes too long|cannot render"):
        template.render(MESSAGES)
    assert time.thread_time() - started < 0.3 + MAX_SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * MAX_CHARS // 1024


def test_what_a_template_may_do_it_does_as_ever():
    source = (
        "{% macro m(x) %}[{{ x }}]{% endmacro %}{% set n = namespace(t='') %}"
        "{% for message in messages %}{% set n.t = n.t ~ loop.index ~ message.content %}"
        "{{ m(message.content + '!') }}{% else %}none{% endfor %}"
        "{{ n.t }}{{ '-' * 3 }}{{ 2 ** 3 }}{{ ([1] + [2]) | length }}"
    )
    assert ChatTemplate(source, {}).render(MESSAGES * 2) == "[hi!][hi!]1hi2hi---82"
    assert ChatTemplate(source, {}).render([]) == "none---82"


def test_a_long_conversation_is_far_from_the_bounds(monkeypatch):
    monkeypatch.setattr(bounded_environment, "MAX_SECONDS", MAX_SECONDS / 4)
    template = ChatTemplate("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}", {})
    long = [{"role": "user", "content": "word " * 800}] * 1000
    assert len(template.render(long)) == 1000 * (4 + 4000)
