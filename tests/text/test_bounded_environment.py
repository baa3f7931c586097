"""Templates that loop for ever or grow without end are stopped, and no other is touched."""

import resource
import time
from contextlib import suppress

import pytest

from qwenapi.text import bounded_environment
from qwenapi.text.bounded_environment import MAX_CHARS, MAX_SECONDS
from qwenapi.text.chat_template import ChatTemplate
from qwenapi.text.errors import TemplateError, TokenizerError

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
GROW = "{%% set n = namespace(a=%s, b=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}%s"
MUCH = {
    "center": "{{ 'a'.center(10 ** 9) }}",
    "zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "tabs": "{{ '\\t'.expandtabs(10 ** 9) }}",
    "bytes": "{{ 'a'.encode().center(10 ** 9) }}",
    "bytes of a number": "{{ (1).to_bytes(10 ** 9) }}",
    "indent": "{{ ('\\n' * 30000) | indent('x' * 30000) }}",
    "batch": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "slice": "{{ [1] | slice(10 ** 9, 'x') | list }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a precision": "{{ '%.1000000000f' | format(1) }}",
    "a width of a value": "{{ '%*d' % (10 ** 9, 1) }}",
    "a width in braces": "{{ '{:1000000000d}'.format(1) }}",
    "a width in braces of a value": "{{ '{0:{1}}'.format(1, 10 ** 9) }}",
    "one value many times": "{{ ('%(a)s' * 30000) % {'a': 'x' * 30000} }}",
    "one value many times in braces": "{{ ('{a}' * 30000).format_map({'a': 'x' * 30000}) }}",
    "replace": "{{ ('s' * 30000) | replace('s', 's' * 1000000) }}",
    "replace, the method": "{{ ('s' * 30000).replace('s', 's' * 1000000) }}",
    "join": "{{ range(99999) | join('x' * 1000000) }}",
    "join, the method": "{{ ('x' * 1000000).join('y' * 30000) }}",
    "join of one text": "{{ (['x' * 1000000] * 30000) | join }}",
    "translate": "{{ ('a' * 30000).translate({97: 'x' * 1000000}) }}",
    "wordwrap": "{{ ('x' * 1000000) | wordwrap(1, true, 'y' * 1000) }}",
    "xmlattr": "{{ {'a': '<' * 30000000} | xmlattr }}",
    "tojson": "{{ ([1] * 1000) | tojson(indent=10 ** 9) }}",
    "sum": "{{ ([[1] * 1000] * 1000) | sum(start=[]) | length }}",
    "groupby": "{{ ('ab' * 90000) | groupby('a', 'b' * 100000) | list }}",
    "split": "{{ ('a ' * 15000000).split() | length }}",
    "characters": "{{ ('ab' * 15000000) | list | length }}",
    "lipsum": "{{ lipsum(10 ** 9) }}",
    "lipsum of one": "{{ lipsum(1, min=10 ** 9, max=10 ** 9 + 1) }}",
    "strftime": "{{ strftime_now('%c' * 10000000) }}",
    "numbers": GROW % (3, 3, "{% set n.a = n.a * n.a %}", "{{ n.a }}"),
    "digits": "{{ ('f' * 3000000) | int(0, 16) }}",
    "lists in lists": GROW % ("['x']", 0, "{% set n.a = [n.a, n.a] %}", "{{ n.a }}"),
    "lists and lists": GROW % ("[]", 0, "{% set n.a = [n.a] + [n.a] %}", "{{ n.a | string }}"),
    "objects in objects": GROW % ("1", 0, "{% set n.a = {1: n.a, 2: n.a} %}", "{{ n.a | tojson }}"),
    "calls in calls": GROW % ("1", 0, "{% set n.a = dict(a=n.a, b=n.a) %}", "{{ n.a | tojson }}"),
    "lists that are compared": GROW
    % ("[]", "[]", "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}", "{{ n.a == n.b }}"),
    "pairs as keys": GROW % ("()", 0, "{% set n.a = (n.a, n.a) %}", "{{ {n.a: 1} | length }}"),
    "defaults": GROW
    % ("[0]", 0, "{% set n.a = ([''] * 1000) | map('default', n.a, true) | list %}", "{{ n.a }}"),
    "namespaces": GROW % ("1", 0, "{% set n.a = namespace(a=n.a, b=n.a) %}", "{{ n.a }}"),
    "a macro of a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{{ "
    + "f(" * 60 + "'xxxxxxx'" + ")" * 60 + " }}",
    "a wide macro": "{% macro f(x) %}" + "{{ x }}" * 1000 + "{% endmacro %}"
    "{{ f('x' * 9000000) }}",
    "a wide block": "{% set x = 'x' * 9000000 %}{% set y %}" + "{{ x }}" * 1000 + "{% endset %}",
    "a wide filter": "{% set x = 'x' * 9000000 %}{% filter upper %}"
    + "{{ x }}" * 1000 + "{% endfilter %}",
    "a hoard of small texts": "{{ range(99999) | map('string') | map('center', 100000) | list }}",
    "a hoard of large texts": "{% set n = namespace(l=none) %}{% for i in range(9000) %}"
    "{% set n.l = namespace(a=n.l, b='\U0001f642' * (300000 + i)) %}{% endfor %}",
}  # fmt: skip


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


@pytest.mark.parametrize("name", MUCH)
def test_a_template_that_makes_too_much_is_refused_before_it_has(name, monkeypatch):
    monkeypatch.setattr(bounded_environment, "MAX_GROWTH_PAGES", (1 << 26) // 4096)
    template = ChatTemplate(MUCH[name], {})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(TemplateError, match="takes too long, or writes too much"):
        template.render(MESSAGES)
    assert time.thread_time() - started < MAX_SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * MAX_CHARS // 1024


HOSTILE_VALUES = {
    "text": "'ab <!-- %s {} http://a \\n' * 3000",
    "list": "[[1] * 300, 'x' * 3000] * 200",
    "object": "{'a': '<' * 100000, 'b': [{'c': 2} ] * 300}",
    "number": "10 ** 50",
}
HOSTILE_ARGUMENTS = ("", "10 ** 9", "'x' * 100000", "10 ** 9, 'x' * 1000", "'a', 'b' * 100000")
ENVIRONMENT = bounded_environment.BoundedEnvironment()


@pytest.mark.parametrize("value", HOSTILE_VALUES)
@pytest.mark.parametrize("name", [*ENVIRONMENT.filters, *ENVIRONMENT.globals])
def test_no_filter_and_no_function_holds_a_process_or_grows_it(name, value):
    """Whether it makes something of these is its own affair."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for arguments in HOSTILE_ARGUMENTS:
        use = f"({HOSTILE_VALUES[value]}) | {name}({arguments})"
        if name in ENVIRONMENT.globals:
            use = f"{name}({arguments})"
        started = time.thread_time()
        for source in (f"{{{{ {use} }}}}", f"{{{{ ({use}) | list | length }}}}"):
            with suppress(TemplateError):
                ChatTemplate(source, {}).render(MESSAGES)
        assert time.thread_time() - started < 2 * MAX_SECONDS, arguments
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * MAX_CHARS // 1024


@pytest.mark.parametrize("value", HOSTILE_VALUES)
@pytest.mark.parametrize("name", ENVIRONMENT.tests)
def test_no_test_holds_a_process(name, value):
    started = time.thread_time()
    for argument in ("", "(10 ** 50)", "(['x' * 100000] * 100)"):
        with suppress(TemplateError, TokenizerError):  # not all are names of the language
            source = f"{{{{ ({HOSTILE_VALUES[value]}) is {name}{argument} }}}}"
            ChatTemplate(source, {}).render(MESSAGES)
    assert time.thread_time() - started < 2 * MAX_SECONDS


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{% if a %}" * 3000 + "{% endif %}" * 3000,
        "{% for a in x %}" * 60 + "{% endfor %}" * 60,
        "{{ 0x" + "f" * 5000 + " }}",
    ],
)
def test_a_template_too_deep_to_compile_is_refused(source):
    with pytest.raises(TokenizerError, match="does not compile"):
        ChatTemplate(source, {})


def test_what_a_template_may_make_it_makes_as_ever():
    source = (
        "{{ 'a' | center(3) }}{{ 'a\nb' | indent(2) }}{{ [1, 2, 3] | batch(2, 0) | list }}"
        "{{ '%05.1f' % 2.5 }}{{ '%s-%s' | format('a', 12345678901) }}{{ '{:>4}'.format('b') }}"
        "{{ range(3) | join(', ') }}{{ ['a', 'b'] | join }}{{ '-'.join(['a', 'b']) }}"
        "{{ 'abab' | replace('ab', 'c') }}{{ 'a b'.split() }}{{ [[1], [2]] | sum(start=[]) }}"
        "{{ {'a': 1} | xmlattr }}{{ {'a': [1]} | tojson(indent=2) }}{{ {'a': 1}.items() | list }}"
        "{{ messages | map(attribute='content') | join('/') }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 7 - 9 }}"
    )
    made = " a a\n  b[[1, 2], [3, 0]]002.5a-12345678901   b0, 1, 2aba-bcc['a', 'b'][1, 2]"
    made += ' a="1"{\n  "a": [\n    1\n  ]\n}[(\'a\', 1)]hi/hi33-2'
    assert ChatTemplate(source, {}).render(MESSAGES * 2) == made


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
