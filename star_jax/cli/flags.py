"""How flags are read: the forms that values take, the names that `--help` lists, and flags whose names have changed.

Every command's flags are a dataclass; tyro reads them, and prints their documentation for `--help`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from star_jax.config import DataConfig
from star_jax.errors import ConfigError
from star_jax.registry import ANNOTATORS, STRATEGIES, TASKS, TRACKERS, Registry

Arguments = TypeVar("Arguments")

HELP_WIDTH = 80
"""Columns of `--help`, whatever the terminal's."""

_REGISTRY = ConstructorRegistry()
_TYRO = (tyro.conf.FlagConversionOff,)  # `_switch` takes a value too, as every other flag does


def parse(
    program: str, kind: Any, argv: Sequence[str], default: Any = tyro.MISSING_NONPROP, description: str | None = None
) -> Any:
    """An instance of the dataclass `kind` from flags.

    Args:
      program: name of the command, for `--help` and messages.
      kind: the dataclass.
      argv: arguments after the program's name.
      default: values of the flags that are not given; the dataclass's own when left out.
      description: for `--help`; the dataclass's own docstring when None.

    Raises:
      ConfigError: values that contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(HELP_WIDTH)
    said = _HeldBack()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=program,
                description=description,
                args=list(argv),
                default=default,
                config=_TYRO,
                registry=_REGISTRY,
            )
    except SystemExit as stop:
        # A value that the dataclass refuses is told of as everywhere, and not in a box of flags.
        refused: BaseException | None = stop
        while refused is not None and not isinstance(refused, ConfigError):
            refused = refused.__context__
        if refused is not None:
            raise ConfigError(str(refused)) from None
        sys.stderr.write(said.getvalue())
        raise
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


class _HeldBack(io.StringIO):
    """Holds what is written to stderr, and looks like it to those who ask whether they may use colours."""

    def isatty(self) -> bool:
        return sys.__stderr__ is not None and sys.__stderr__.isatty()


def shallow(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, those that are dataclasses as they are."""
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


def given(program: str, argv: Sequence[str], *names: str) -> dict[str, str | None]:
    """What some flags are given, read before all others; None for those that are not there.

    Args:
      program: name of the command, for messages.
      argv: arguments after it.
      names: of the flags, with underscores; hyphens are understood as well.
    """
    parser = argparse.ArgumentParser(
        program, usage=f"{program} [--config FILE] [OPTIONS]", add_help=False, allow_abbrev=False
    )
    for name in names:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, dest=name, metavar="FILE")
    return vars(parser.parse_known_args(argv)[0])


def separated(text: str | None) -> tuple[str, ...]:
    """The entries of a comma-separated flag."""
    return tuple(item.strip() for item in (text or "").split(",") if item.strip())


def without_former_names(argv: Sequence[str], normaliser: str | None = None) -> list[str]:
    """Flags of former releases as those of today.

    `--acquisition.arithmetic released` is `--acquisition.normaliser released`; `standard` takes that of a file back.

    Args:
      argv: as given.
      normaliser: `acquisition.normaliser` of the file that the flags are laid over.

    Raises:
      ConfigError: a value that the flag never took, or one that contradicts its successor.
    """
    kept, rest, former, asked = [], list(argv), None, None
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name == "--acquisition.arithmetic":
            former = value if equals else (rest.pop(0) if rest else "")
            if former not in ("standard", "released"):
                raise ConfigError(f"--acquisition.arithmetic is {former!r}; it must be one of standard, released")
            continue
        if name == "--acquisition.normaliser":
            asked = value if equals else (rest[0] if rest else "")
        kept.append(name + equals + value)
    said = normaliser if asked is None else asked
    if former == "released" and said not in (None, "none", "released"):
        raise ConfigError(
            f"acquisition.normaliser is {said}, but --acquisition.arithmetic released scales the base by min-max "
            "and the full model not at all; set one of the two"
        )
    if former == "released":
        kept += ["--acquisition.normaliser", "released"]
    elif former == "standard" and asked is None and normaliser == "released":
        kept += ["--acquisition.normaliser", "none"]
    return kept


def describe_names(kind: Any) -> None:
    """Puts the names there are, plug-ins' included, into the documentation of a command's flags and of `data.task`.

    Done at run time, since plug-ins are known only then. tyro reads the `Attributes` of a docstring before the texts
    behind the fields.
    """
    texts = {
        "strategies": _names(
            STRATEGIES, "Comma separated; auto is star and random, and star alone where somebody has to label. Or"
        ),
        "strategy": _names(STRATEGIES, "How they are picked. One of"),
        "annotator": _names(
            ANNOTATORS,
            "Who labels what is picked: auto is the pool's own responses where it has all of them, and a table for a "
            "person where it has not; or",
        ),
        "track": _names(TRACKERS, "Where figures go besides the run folders, comma separated"),
        "task": _names(TASKS, "Template, parser and correctness; generic is what the format section describes. One of"),
    }
    for owner in (kind, DataConfig):
        own = {item.name for item in dataclasses.fields(owner)} & texts.keys()
        first = (owner.__doc__ or "").partition("\n\nAttributes:")[0]
        lines = "".join(f"\n  {name}: {texts[name]}" for name in sorted(own))
        owner.__doc__ = f"{first}\n\nAttributes:{lines}\n" if own else first


def _names(registry: Registry, before: str) -> str:
    return f"{before}: {', '.join(registry.names())}."


@_REGISTRY.primitive_rule
def _none(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
    """`none` for the optional fields, in the lower case that the field documentation uses."""
    if type_info.type is not NoneType:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{none}",
        choices=("none",),
        instance_from_str=lambda _: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda _: ["none"],
    )


@_REGISTRY.primitive_rule
def _switch(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """`--flag`, `--flag true` and `--flag false`, the values as in a YAML file."""
    if type_info.type is not bool:
        return None

    def parse(arguments: list[str]) -> bool:
        if len(arguments) > 1 or (arguments and arguments[0].lower() not in ("true", "false")):
            raise ValueError(f"{' '.join(arguments)!r} is neither true nor false")
        return not arguments or arguments[0].lower() == "true"

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[{true,false}]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    )


@_REGISTRY.primitive_rule
def _comma_separated(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Any, ...]] | None:
    """`a,b` as one argument for `tuple[str, ...]` and `tuple[int, ...]`."""
    item_type = {(str, ...): str, (int, ...): int}.get(typing.get_args(type_info.type))
    if type_info.type_origin is not tuple or item_type is None:
        return None

    def parse(arguments: list[str]) -> tuple[Any, ...]:
        items = [item.strip() for item in arguments[0].split(",")] if arguments[0].strip() else []
        for item in items:
            if not item:
                raise ValueError(f"{arguments[0]!r} has an empty entry; separate entries by single commas")
            if item_type is int and not item.removeprefix("-").isdecimal():
                raise ValueError(f"{item!r} is not a whole number")
        return tuple(item_type(item) for item in items)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME,..." if item_type is str else "INT,...",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, item_type) for item in value),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )
