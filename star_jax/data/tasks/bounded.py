"""Jinja templates that others wrote, with an end: bounds on what one may do and how much it may write.

A sandbox keeps a template from reading files; it does not keep it from looping for years, or from doubling a text until
the memory is full. Here every iteration, every call and every text that is made is paid for out of one account, counted
and never timed, so that a template fails everywhere or nowhere. What would not fit is refused before it is made.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple

import jinja2.ext
from jinja2 import Template, TemplateRuntimeError, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_CHARACTERS = 10_000_000
"""Characters of a text that a template writes, or makes on the way."""

MOST_WORK = 50_000_000
"""What one rendering may spend: a character of what is made costs one, an iteration or a call as many as the template
has characters, and `LEAST_STEP`."""

LEAST_STEP = 100
"""What a step costs besides."""

MOST_SOURCE = 1_000_000
"""Characters of a template."""

MOST_BITS = 10_000
"""Of a whole number."""

VALUE_COST = 50
"""What an entry of a list or an object costs."""

WIDEST = 100_000
"""Largest width, indentation or number of parts that a filter or a method is asked for."""

_GROWING = frozenset({"center", "indent", "wordwrap", "batch", "slice", "round", "tojson", "format"})
"""Filters that make more of what they are given, the larger a number they are told."""

_EACH, _JOINED, _WEIGHED = "star_jax_each", "star_jax_joined", "star_jax_weighed"


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


_account: ContextVar[_Account | None] = ContextVar("account", default=None)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end; made as any other environment of Jinja."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, *, finalize: Callable[[Any], Any] | None = None, **options: Any) -> None:
        super().__init__(finalize=_paid_for(finalize), optimized=False, **options)
        self.globals.pop("lipsum")
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_EACH: _each, _JOINED: _joined, _WEIGHED: _weighed}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting(self).visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation, if what it makes has room."""
        _refuse_large_result(operator, left, right)
        return _weighed(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """The sandbox's own `str.format`, if what it makes has room."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(wrapped)
        def filled(*args: Any, **kwargs: Any) -> Any:
            return wrapped(*_method_arguments(value, args, kwargs), **kwargs)

        return filled

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call of a macro, a method or a function, each of which is a step."""
        _pay_step()
        if isinstance(obj, LoopContext):
            args = (_each(args[0]), *args[1:]) if args else args
        elif isinstance(obj, types.BuiltinMethodType) or isinstance(getattr(obj, "__self__", None), str):
            args = _method_arguments(obj, args, kwargs)
        return _weighed(super().call(context, obj, *args, **kwargs))


class Compiled(NamedTuple):
    """A template that can be rendered.

    Attributes:
      tree: what it says.
      template: of Jinja.
      size: characters of its source.
    """

    tree: nodes.Template
    template: Template
    size: int

    def render(self, values: Mapping[str, Any]) -> str:
        """The text.

        Raises:
          BoundsError: it takes too many steps, or what it makes is too large.
          Exception: whatever the template's own expressions raise.
        """
        token = _account.set(_Account(self.size + LEAST_STEP))
        try:
            pieces, written = [], 0
            for piece in self.template.generate(values):
                written += len(piece)
                if written > MOST_CHARACTERS:
                    raise BoundsError(f"it writes more than {MOST_CHARACTERS:,} characters")
                pieces.append(piece)
            return "".join(pieces)
        except RecursionError:
            raise BoundsError("it goes around in a circle, or too deep; look for a macro that calls itself") from None
        finally:
            _account.reset(token)


def compiled(environment: BoundedEnvironment, source: str) -> Compiled:
    """A template of an environment.

    Raises:
      TemplateSyntaxError: the source is no template.
      BoundsError: it is too long, or nested too deeply.
    """
    if len(source) > MOST_SOURCE:
        raise BoundsError(f"it has {len(source):,} characters; at most {MOST_SOURCE:,} are read")
    try:
        return Compiled(environment.parse(source), environment.from_string(source), len(source))
    except TemplateSyntaxError:
        raise
    except (RecursionError, MemoryError, SyntaxError) as error:
        raise BoundsError("it is nested too deeply") from error


def chat_environment() -> BoundedEnvironment:
    """What Transformers gives to chat templates: blocks take their line, `generation` is a block, and a few functions.

    `strftime_now` is not among them, for a date would change a pool's prompts overnight.
    """

    def raise_exception(message: Any) -> None:
        raise TemplateRuntimeError(str(message))

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = _bounded_filter("tojson", tojson)
    made.globals["raise_exception"] = raise_exception
    return made


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model wrote, which is written as it stands."""

    tags = {"generation"}  # noqa: RUF012 - as the class declares it

    def parse(self, parser: Any) -> nodes.Node:
        """What is between the tags."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _Counting(NodeTransformer):
    """Makes loops, joins and lists of a template go through the account."""

    def __init__(self, environment: BoundedEnvironment) -> None:
        self._environment = environment

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._filtered(node.iter, _EACH)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes).set_lineno(node.lineno)
        return self._filtered(parts.set_environment(self._environment), _JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        fixed = all(isinstance(item, nodes.Const) for item in node.items)
        return node if fixed else self._filtered(node, _WEIGHED)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        fixed = node.ctx != "load" or all(isinstance(item, nodes.Const) for item in node.items)
        return node if fixed else self._filtered(node, _WEIGHED)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        fixed = all(isinstance(pair.value, nodes.Const) for pair in node.items)
        return node if fixed else self._filtered(node, _WEIGHED)

    def _filtered(self, node: nodes.Node, name: str) -> Any:
        wrapped = nodes.Filter(node, name, [], [], None, None)
        return wrapped.set_lineno(node.lineno).set_environment(self._environment)


def _pay_step() -> None:
    account = _account.get()
    if account is not None:
        account.pay(account.step)


def _pay(cost: int) -> None:
    account = _account.get()
    if account is not None:
        account.pay(cost)


def _each(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _pay_step()
        yield value


def _joined(values: Iterable[Any]) -> str:
    """The texts of some values, one behind the other."""
    texts = [str(_weighed(value)) for value in values]
    _refuse_longer(sum(map(len, texts)))
    return "".join(texts)


def _weighed(value: Any) -> Any:
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


def _paid_for(finalize: Callable[[Any], Any] | None) -> Callable[[Any, Any], Any]:
    # Told of the context, or Jinja would print what is constant while it compiles, before anybody counts.
    @pass_context
    def printed(context: Any, value: Any) -> Any:
        return _weighed(value if finalize is None else finalize(value))

    return printed


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
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
        return _weighed(function(*own, *given, **kwargs))

    return bounded


def _refuse_large_result(operator: str, left: Any, right: Any) -> None:
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


def _method_arguments(method: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
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
