"""Jinja templates that others wrote, with an end: a sandbox in which what one may do and write is bounded.

A sandbox keeps a template from reading files; it does not keep it from looping for years, or from doubling a text until
the memory is full. Here all of it is paid for (`data.tasks.bounds`), so that a template fails everywhere or nowhere.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple

import jinja2.ext
from jinja2 import Template, TemplateRuntimeError, TemplateSyntaxError, nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from star_jax.data.tasks.bounds import (
    MOST_CHARACTERS,
    BoundsError,
    account,
    bounded_filter,
    each,
    joined,
    method_arguments,
    pay_step,
    refuse_large_result,
    weighed,
)

LEAST_STEP = 100
"""What a step costs besides."""

MOST_SOURCE = 1_000_000
"""Characters of a template."""

_EACH, _JOINED, _WEIGHED = "star_jax_each", "star_jax_joined", "star_jax_weighed"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end; made as any other environment of Jinja."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self, *, finalize: Callable[[Any], Any] | None = None, **options: Any) -> None:
        super().__init__(finalize=_paid_for(finalize), optimized=False, **options)
        self.globals.pop("lipsum")
        self.filters = {name: bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_EACH: each, _JOINED: joined, _WEIGHED: weighed}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counting(self).visit(super()._parse(source, name, filename))
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation, if what it makes has room."""
        refuse_large_result(operator, left, right)
        return weighed(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        """The sandbox's own `str.format`, if what it makes has room."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(wrapped)
        def filled(*args: Any, **kwargs: Any) -> Any:
            return wrapped(*method_arguments(value, args, kwargs), **kwargs)

        return filled

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call of a macro, a method or a function, each of which is a step."""
        pay_step()
        if isinstance(obj, LoopContext):
            args = (each(args[0]), *args[1:]) if args else args
        elif isinstance(obj, types.BuiltinMethodType) or isinstance(getattr(obj, "__self__", None), str):
            args = method_arguments(obj, args, kwargs)
        return weighed(super().call(context, obj, *args, **kwargs))


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
        try:
            with account(self.size + LEAST_STEP):
                pieces, written = [], 0
                for piece in self.template.generate(values):
                    written += len(piece)
                    if written > MOST_CHARACTERS:
                        raise BoundsError(f"it writes more than {MOST_CHARACTERS:,} characters")
                    pieces.append(piece)
                return "".join(pieces)
        except RecursionError:
            raise BoundsError("it goes around in a circle, or too deep; look for a macro that calls itself") from None


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
    made.filters["tojson"] = bounded_filter("tojson", tojson)
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


def _paid_for(finalize: Callable[[Any], Any] | None) -> Callable[[Any, Any], Any]:
    # Told of the context, or Jinja would print what is constant while it compiles, before anybody counts.
    @pass_context
    def printed(context: Any, value: Any) -> Any:
        return weighed(value if finalize is None else finalize(value))

    return printed
