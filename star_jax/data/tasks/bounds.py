"""What a template may spend, and what is refused before it is made.

Every iteration, every call and every text that is made is paid for out of one account, counted and never timed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import TemplateRuntimeError

MOST_CHARACTERS = 10_000_000
"""Characters of a text that a template writes, or makes on the way."""

MOST_WORK = 50_000_000
"""What one rendering may spend: a character of what is made costs one, an iteration or a call as many as the template
has characters, and `LEAST_STEP` of `data.tasks.bounded`."""

MOST_BITS = 10_000
"""Of a whole number."""

VALUE_COST = 50
"""What an entry of a list or an object costs."""

WIDEST = 100_000
"""Largest width, indentation or number of parts that a filter or a method is asked for."""

_GROWING = frozenset({"center", "indent", "wordwrap", "batch", "slice", "round", "tojson", "format"})
"""Filters that make more of what they are given, the larger a number they are told."""


class BoundsError(TemplateRuntimeError):
    """A template that asks for more than it may have; the message says of what."""


class _Account:
    """What is left for one rendering, and what a step of it costs."""

    def __init__(self, step: int) -> None:
        self.left = MOST_WORK
        self.step = step

    def pay(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise BoundsError("it takes more steps than any prompt does; look for a loop or a macro without an end")


_open_account: ContextVar[_Account | None] = ContextVar("open_account", default=None)


@contextmanager
def account(step: int) -> Iterator[None]:
    """What is done within is paid for, a step at the price that is given; outside, everything is free."""
    token = _open_account.set(_Account(step))
    try:
        yield
    finally:
        _open_account.reset(token)


def pay_step() -> None:
    """Pays for an iteration or a call.

    Raises:
      BoundsError: nothing is left.
    """
    opened = _open_account.get()
    if opened is not None:
        opened.pay(opened.step)


def _pay(cost: int) -> None:
    opened = _open_account.get()
    if opened is not None:
        opened.pay(cost)


def each(values: Iterable[Any]) -> Iterator[Any]:
    """The values, each of which is a step."""
    for value in values:
        pay_step()
        yield value


def joined(values: Iterable[Any]) -> str:
    """The texts of some values, one behind the other."""
    texts = [str(weighed(value)) for value in values]
    _refuse_longer(sum(map(len, texts)))
    return "".join(texts)


def weighed(value: Any) -> Any:
    """The value, paid for with all that is in it, however often: a list may hold another a billion times."""
    if isinstance(value, str | bytes):
        _refuse_longer(len(value))
        _pay(len(value))
    elif isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise BoundsError(f"it makes a number of more than {MOST_BITS:,} bits")
    elif isinstance(value, range):
        _pay(VALUE_COST * len(value))
    elif isinstance(value, list | tuple | dict):
        inside, seen = [value], 0
        while inside:
            outer = inside.pop()
            items = list(outer.values()) if isinstance(outer, dict) else outer
            seen += len(items)
            _refuse_longer(VALUE_COST * seen)
            inside += [item for item in items if isinstance(item, list | tuple | dict)]
        _pay(VALUE_COST * seen)
    return value


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja that refuses what its result would have no room for."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        own, given = args[:skipped], args[skipped:]
        if name == "join" and given and not isinstance(given[0], str):
            given = (list(given[0]), *given[1:])
            texts = [len(item) if isinstance(item, str) else 0 for item in given[0]]
            _refuse_longer(sum(texts) + len(texts) * _longest([*given[1:2], kwargs.get("d", "")]))
        elif name == "replace" and len(given) >= 3:
            _refuse_longer(_replaced_length(*map(str, given[:3])))
        elif name in _GROWING:
            others = [*given[1:], *kwargs.values()]
            _refuse_wide(others)
            text = str(given[0]) if name == "format" else ""
            _refuse_longer(_filled_length(text, others) if name == "format" else _longest(given[:1]) * _longest(others))
        return weighed(function(*own, *given, **kwargs))

    return bounded


def refuse_large_result(operator: str, left: Any, right: Any) -> None:
    """Refuses an operation whose result would have no room.

    Raises:
      BoundsError: saying of what there would be too much.
    """
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "*" and whole and left.bit_length() + right.bit_length() > MOST_BITS + 1:
        raise BoundsError(f"it makes a number of more than {MOST_BITS:,} bits")
    if operator == "**" and whole and right > 0 and left.bit_length() * right > MOST_BITS:
        raise BoundsError(f"it makes a number of more than {MOST_BITS:,} bits")
    if operator == "*":
        for text, count in ((left, right), (right, left)):
            if isinstance(text, str | bytes | list | tuple) and isinstance(count, int):
                _refuse_longer(len(text) * count * (1 if isinstance(text, str | bytes) else VALUE_COST))
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        _refuse_longer(len(left) + len(right))
    if operator == "%" and isinstance(left, str):
        values = list(right.values()) if isinstance(right, dict) else right if isinstance(right, tuple) else (right,)
        if "*" in left:
            _refuse_wide(values)
        _refuse_longer(_filled_length(left, values))


def method_arguments(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a method of a built-in type, if what it makes has room."""
    text, name = method.__self__, method.__name__
    if not isinstance(text, str | bytes):
        _refuse_wide([*args, *kwargs.values()])
        return args
    if name in ("center", "ljust", "rjust", "zfill", "expandtabs"):
        _refuse_wide([*args, *kwargs.values()])
        _refuse_longer(len(text) * max([8, *(arg for arg in args if isinstance(arg, int))]) if "expand" in name else 0)
    elif name == "join" and args and not isinstance(args[0], str):
        args = (list(args[0]), *args[1:])
        lengths = [len(item) for item in args[0] if isinstance(item, str)]
        _refuse_longer(sum(lengths) + len(text) * len(lengths))
    elif name == "join" and args:
        _refuse_longer(len(args[0]) * (1 + len(text)))
    elif name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
        _refuse_longer(_replaced_length(str(text), args[0], args[1]))
    elif name in ("format", "format_map"):
        mapped = [value for arg in args if isinstance(arg, Mapping) for value in arg.values()]
        values = [*args, *kwargs.values(), *mapped]
        _refuse_wide(values) if re.search(r":[^}]*\{", str(text)) else None
        _refuse_longer(_filled_length(str(text), values))
    elif name == "translate" and args and isinstance(args[0], Mapping):
        _refuse_longer(len(text) * _longest(args[0].values()))
    return args


def _replaced_length(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def _filled_length(form: str, values: Iterable[Any]) -> int:
    """Characters that a form has at most, with every place filled by the longest value or as wide as it says."""
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", form)]
    places = form.count("%") + form.count("{")
    return len(form) + places * max([_longest(values), *widths])


def _longest(values: Iterable[Any]) -> int:
    """Characters of the longest text, or the largest number, of some values; 1 at least."""
    sizes = [1]
    for value in values:
        if isinstance(value, int):
            sizes.append(abs(value))
        elif isinstance(value, str | list | tuple | dict):
            with suppress(TypeError):
                sizes.append(len(value))
    return max(sizes)


def _refuse_longer(length: int) -> None:
    if length > MOST_CHARACTERS:
        raise BoundsError(f"it makes a text or a list of more than {MOST_CHARACTERS:,} characters")


def _refuse_wide(values: Iterable[Any]) -> None:
    if any(isinstance(value, int) and value > WIDEST for value in values):
        raise BoundsError(f"it asks for a width or a number of parts of more than {WIDEST:,}")
