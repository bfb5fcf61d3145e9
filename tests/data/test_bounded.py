"""Templates that others wrote: the same text as everywhere, and an end."""

import pytest
from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from test_chat import chatty

from star_jax.config import FormatConfig
from star_jax.data.tasks import bounded, bounds, get_task
from star_jax.data.tasks.bounded import BoundedEnvironment, BoundsError, chat_environment, compiled
from star_jax.data.tasks.templates import RowTemplate
from star_jax.errors import ConfigError, DataError

ROW = {
    "q": "How many?",
    "n": 3,
    "words": ["one", "two", "three"],
    "pairs": [["a", 1], ["b", 2]],
    "deep": {"x": {"y": ["z"]}},
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": []}]}],
}

HARMLESS = [
    "{{ q }}\n{% for w in words %}{{ loop.index }}/{{ loop.length }} {{ w }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for a, b in pairs %}{{ a ~ ':' ~ b }}{% else %}none{% endfor %}",
    "{% for k in deep %}{{ k }}{{ deep[k]['y'][0] }}{% endfor %}{{ words | join(', ') }}{{ '-'.join(words) }}",
    "{% set ns = namespace(t='') %}{% for w in words if w != 'two' %}{% set ns.t = ns.t + w %}{% endfor %}{{ ns.t }}",
    "{% for t in tree recursive %}{{ t.v }}{% if t.c %}({{ loop(t.c) }}){% endif %}{% endfor %}",
    "{% macro m(x, y=2) %}<{{ x * y }}>{% endmacro %}{{ m(n) }}{{ m('ab', 3) }}{{ m(y=1, x=q) }}",
    "{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}in{% endcall %}",
    "{{ words[1:] | first | upper }} {{ q | replace('How', 'So') }} {{ q.replace('?', '!') }} {{ '%s-%05d' % (q, n) }}",
    "{{ '{} {:>8}'.format(q, n) }} {{ 'a,b'.split(',') | last }} {{ n ** 2 + 2 * n % 4 }} "
    "{{ (words + ['x']) | length }}",
    "{{ range(3) | list | sum }} {{ q | center(20) }}|{{ q | indent(4) }} {{ words | tojson }} {{ [q, n] | tojson }}",
    "{% filter upper %}{{ q }}{% endfilter %}{% set b %}{{ n }} of {{ q }}{% endset %}"
    "{{ b | length }}{{ dict(a=n).a }}",
    "{{ words | map('upper') | select('ne', 'TWO') | join('+') }}{{ (n, 2) | max }}{{ {'a': n}['a'] }}",
    "{{ 'tab\tx'.expandtabs(4) }}{{ q | e }}{{ '%s' | format(q) }}",
    "{% if n in (1, 2, 3) and q is string %}{{ q | truncate(5, true) }}{% endif %}{{ cycler('a', 'b').next() }}",
    "{% for w in words %}{{ loop.cycle('odd', 'even') }}{{ loop.previtem | default('-') }}"
    "{{ loop.nextitem }}{% endfor %}",
]


@pytest.mark.parametrize("source", HARMLESS)
def test_a_template_writes_what_it_writes_elsewhere(source):
    mine = compiled(BoundedEnvironment(keep_trailing_newline=True), source).render(ROW)
    assert mine == ImmutableSandboxedEnvironment(keep_trailing_newline=True).from_string(source).render(ROW)


DOUBLING = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = BODY %}{% endfor %}{{ ns.x | length }}"
)

HOSTILE = {
    "a loop in a loop": "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "ranges in lists": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "a recursive loop": "{% set r = range(999) %}{% for i in r recursive %}{{ loop(r) }}{% endfor %}",
    "a loop over a loop": "{% set r = range(99999) %}{% for i in r recursive %}"
    "{% if loop.depth0 < 1 %}{{ loop(r) }}{% endif %}{% endfor %}",
    "a macro of itself": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "a macro of itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "a text times a number": "{{ 'x' * 10 ** 9 }}",
    "a number times a text": "{{ 10 ** 9 * 'x' }}",
    "a list times a number": "{{ ([1] * 10 ** 9) | length }}",
    "a text times itself": DOUBLING.replace("BODY", "ns.x * 1000"),
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a power of a power": "{% set ns = namespace(x=3) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a sum": DOUBLING.replace("BODY", "ns.x + ns.x"),
    "a joint": DOUBLING.replace("BODY", "ns.x ~ ns.x"),
    "a printed pair": DOUBLING.replace(
        "{% set ns.x = BODY %}", "{% set b %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = b %}"
    ),
    "lists in lists": DOUBLING.replace("BODY", "[ns.x, ns.x]"),
    "tuples in objects": DOUBLING.replace("BODY", "{'a': (ns.x, ns.x), 'b': ns.x}"),
    "objects by calls": DOUBLING.replace("BODY", "dict(a=ns.x, b=ns.x)"),
    "lists by filters": DOUBLING.replace("BODY", "(ns.x, ns.x) | list"),
    "json of json": "{{ '\"'" + " | tojson" * 60 + " }}",
    "replace": DOUBLING.replace("BODY", "ns.x.replace('a', ns.x)"),
    "replace by a filter": DOUBLING.replace("BODY", "ns.x | replace('a', ns.x)"),
    "replace of nothing": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "join": "{{ ('x' * 99999).join(range(9999) | map('string')) }}",
    "join of a text": "{{ ('x' * 99999).join('y' * 99999) }}",
    "join by a filter": "{{ range(9999) | join('x' * 99999) }}",
    "center": "{{ 'x'.center(10 ** 9) }}",
    "center by a filter": "{{ 'x' | center(10 ** 9) }}",
    "center of many": "{{ ['x'] | map('center', 10 ** 9) | list }}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "zfill": "{{ 'x'.zfill(10 ** 9) }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(99999) }}",
    "indent": "{{ ('\n' * 99999) | indent(99999, blank=true) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent and a star": "{{ '%*d' % (10 ** 9, 1) }}",
    "percent of many": "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format by a field": "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "format of many": "{{ ('{0}' * 9999).format('x' * 99999) }}",
    "format by a filter": "{{ '%1000000000d' | format(1) }}",
    "translate": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "batches": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "much output": "{% for i in range(99999) %}" + "x" * 999 + "{% endfor %}",
    "bytes": "{{ (1).to_bytes(10 ** 9, 'big') }}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_would_go_on_or_grow_without_end_is_refused(source):
    with pytest.raises((BoundsError, OverflowError)) as caught:
        compiled(BoundedEnvironment(), source).render({})
    assert len(str(caught.value)) < 200


def test_what_is_spent_is_counted_and_not_timed(monkeypatch):
    template = compiled(BoundedEnvironment(), "{% for w in words %}{{ w }}{% endfor %}")
    cost = 3 * (template.size + bounded.LEAST_STEP) + len("onetwothree")
    monkeypatch.setattr(bounds, "MOST_WORK", cost)
    assert template.render(ROW) == template.render(ROW) == "onetwothree"
    monkeypatch.setattr(bounds, "MOST_WORK", cost - 1)
    with pytest.raises(BoundsError, match="more steps than any prompt does"):
        template.render(ROW)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{{ " + "1 + " * 5_000 + "1 }}",
        "{% if q %}" * 3000 + "{% endif %}" * 3000,
        "{% for i in [1] %}" * 40 + "{% endfor %}" * 40,
        "x" * 1_000_001,
    ],
    ids=["parentheses", "lists", "terms", "conditions", "loops", "length"],
)
def test_a_source_that_is_nested_or_long_without_end_is_refused(source):
    with pytest.raises((BoundsError, TemplateSyntaxError)):
        compiled(BoundedEnvironment(), source)
    with pytest.raises(ConfigError, match=r"^format\.prompt is no"):
        RowTemplate("format.prompt", source)


def test_a_row_that_a_template_cannot_hold_is_an_error_of_that_row():
    template = RowTemplate("format.prompt", "{% for w in words %}{{ q * n }}{% endfor %}")
    assert template.render({"q": "a", "n": 2, "words": "xy"}) == "aaaa"
    with pytest.raises(DataError, match=r"format\.prompt cannot be filled in: it makes a text or a list of more than"):
        template.render({"q": "a", "n": 10**9, "words": "xy"})
    assert template.render({"q": "a", "n": 3, "words": "x"}) == "aaa"


TURNS = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Why?\n"}]
TURNS_ANSWERED = [*TURNS, {"role": "assistant", "content": " so"}]

CHAT = [
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m['content'] | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "{%- set ns = namespace(system='') -%}\n  {%- for m in messages %}\n    {%- if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% continue %}{% endif %}\n"
    "    [{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n  {% endfor %}{{ ns.system | tojson }}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% if not documents is defined %}x{% endif %}\n"
    "{% for m in messages[1:] %}{{ m.content }}{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ eos_token }}",
]


@pytest.mark.parametrize("template", CHAT)
@pytest.mark.parametrize("turns", [TURNS, TURNS_ANSWERED])
def test_a_chat_template_writes_what_transformers_writes(template, turns):
    tokenizer = chatty(template)
    for open_end in (True, False):
        values = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": open_end}
        mine = compiled(chat_environment(), template).render({**tokenizer.special_tokens_map, **values})
        assert mine == tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_end)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more steps than any prompt",
        ),
        ("{{ 'x' * 10 ** 9 }}", "a text or a list of more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "around in a circle"),
        ("{{ raise_exception('no such turns') }}", "no such turns"),
        ("{{ bos_token }} a message <assistant>", "does not write the user's message into the prompt"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not write the user's message into the prompt"),
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            "does not write the system message into the prompt; set format.system to none",
        ),
    ],
)
def test_a_chat_template_that_has_no_end_or_drops_a_message_is_refused(template, said):
    with pytest.raises(ConfigError, match=said):
        get_task("generic", FormatConfig(prompt="{{ q }}", chat=True, system="Brief."), chatty(template))


def test_a_message_that_a_chat_template_cannot_hold_is_an_error_of_that_row():
    loop = "{% for m in messages %}{% for i in range(m.content | length) %}{% endfor %}{{ m.content }}{% endfor %}"
    task = get_task("generic", FormatConfig(prompt="{{ q }}", chat=True), chatty(loop))
    assert task.prompt({"q": "Why?"}) == "Why?"
    with pytest.raises(DataError, match="chat template cannot be filled in with this message"):
        task.prompt({"q": "x" * 99_999 * 10})


def test_undefined_values_are_those_of_the_environment():
    strict = BoundedEnvironment(undefined=StrictUndefined)
    with pytest.raises(Exception, match="'nothing' is undefined"):
        compiled(strict, "{% for x in nothing %}{% endfor %}").render({})
    assert (
        compiled(BoundedEnvironment(), "{% for x in nothing %}{% else %}none{% endfor %}{{ nothing }}").render({})
        == "none"
    )
