"""An experiment from a YAML file: reading, typed construction, and errors that name file, line and field.

Belongs here: what turns text into an `ExperimentConfig`. What the fields are and which values they take is
`config`; flags are `cli`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite
import yaml

from star_jax.config import ExperimentConfig
from star_jax.documents import WHOLE_NUMBERS, UnreadableError, parse_yaml, read_text, shown
from star_jax.errors import ConfigError

MOST_BYTES = 1 << 24
"""Largest configuration file that is read: 16 MiB."""


@dataclass(frozen=True)
class Source:
    """Where a mapping came from.

    Attributes:
      path: name of the file, for messages.
      lines: dotted field -> line number, counted from 1.
    """

    path: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def where(self, name: str) -> str:
        """`path:line` of a dotted field, of its section where the field itself is not written, or the path alone."""
        line = self.lines.get(name) or self.lines.get(name.partition(".")[0])
        return self.path if line is None else f"{self.path}:{line}"


def load_yaml(path: str | Path) -> tuple[dict[str, Any], Source]:
    """Reads a YAML file.

    An empty file is an empty mapping.

    Returns:
      The mapping, and where each of its fields stands.

    Raises:
      ConfigError: the file cannot be read, is not YAML, is no mapping, or gives a key twice.
    """
    try:
        text = read_text(Path(path), MOST_BYTES)
    except UnreadableError as error:
        raise ConfigError(f"{path}: cannot read the configuration file: {_reason(error)}") from error
    try:
        mapping, node = parse_yaml(text)
    except UnreadableError as error:
        line = "" if error.line is None else f":{error.line}"
        if error.problem.endswith("and no keys"):
            raise ConfigError(
                f"{path}{line}: the file must hold keys such as `output_dir: runs/mine`; it {error.problem}"
            ) from error
        raise ConfigError(f"{path}{line}: {error.problem.removeprefix('is ')}") from error
    lines: dict[str, int] = {}
    for name, line_number in _keys(node):
        if name in lines:
            raise ConfigError(f"{path}:{line_number}: {name} is already given in line {lines[name]}; keep one of them")
        lines[name] = line_number
    return mapping, Source(str(path), lines)


def _reason(error: UnreadableError) -> str:
    cause = error.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else f"it {error.problem}"


def config_from_mapping(mapping: Mapping[str, Any], source: Source) -> ExperimentConfig:
    """Builds the configuration from nested plain values; fields that are absent keep their defaults.

    Accepted beside the declared types: integers and forms like `1e-4` for floats, lists for tuples, and `none`,
    as on the command line, for null.

    Raises:
      ConfigError: an unknown key, a value of the wrong type, or one that the configuration refuses.
    """
    mapping = without_former_settings(mapping, source)
    _refuse_unknown(mapping, source)
    optional = {hint: _optional for hint in _field_types().values() if types.NoneType in typing.get_args(hint)}
    try:
        return dacite.from_dict(
            ExperimentConfig,
            mapping,
            dacite.Config(
                strict=True,
                type_hooks=optional
                | {int: _whole, float: _number, tuple[str, ...]: _sequence, tuple[int, ...]: _sequence},
            ),
        )
    except dacite.DaciteFieldError as error:
        name = error.field_path or ""
        value = functools.reduce(lambda section, key: section[key], name.split("."), mapping)
        raise ConfigError(
            f"{source.where(name)}: {name} is {shown(value)}; it must be {_expected(_field_types()[name])}"
        ) from error
    except ConfigError as error:
        # The dataclass that refused the value names fields, not lines: the first one that is in the file is meant.
        named = [word for word in re.findall(r"[a-z0-9_]+(?:\.[a-z0-9_]+)?", str(error)) if word in source.lines]
        raise ConfigError(f"{source.where(named[0] if named else '')}: {error}") from error


def without_former_settings(mapping: Mapping[str, Any], source: Source | None = None) -> Mapping[str, Any]:
    """Settings of former releases as those of today; the others as they are.

    `acquisition.arithmetic: released` is `acquisition.normaliser: released`, and `standard` says nothing.

    Raises:
      ConfigError: a value that the setting never took, or one that contradicts its successor.
    """
    section = mapping.get("acquisition")
    if not isinstance(section, Mapping) or "arithmetic" not in section:
        return mapping
    rest = {name: value for name, value in section.items() if name != "arithmetic"}
    value, asked = section["arithmetic"], rest.get("normaliser")
    where = "" if source is None else f"{source.where('acquisition.arithmetic')}: "
    if value not in ("standard", "released"):
        raise ConfigError(f"{where}acquisition.arithmetic is {shown(value)}; it must be one of standard, released")
    if value == "released":
        if asked not in (None, "none", "released"):
            raise ConfigError(
                f"{where}acquisition.normaliser is {asked}, but acquisition.arithmetic released scales the base by "
                "min-max and the full model not at all; set one of the two"
            )
        rest["normaliser"] = "released"
    return {**mapping, "acquisition": rest}


@functools.cache
def _field_types() -> dict[str, Any]:
    """Dotted name -> declared type of every section and field of `ExperimentConfig`."""
    declared: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(ExperimentConfig).items():
        declared[name] = hint
        if dataclasses.is_dataclass(hint):
            declared |= {f"{name}.{key}": inner for key, inner in typing.get_type_hints(hint).items()}
    return declared


def _keys(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Dotted name and line of each key, in order; two levels deep, as deep as a configuration is."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            if not prefix:
                yield from _keys(value, f"{name}.")


def _refuse_unknown(mapping: Mapping[str, Any], source: Source, prefix: str = "") -> None:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        hint = _field_types().get(name)
        if hint is None or "." in str(key):
            raise ConfigError(f"{source.where(name)}: unknown key {name}; {_suggestion(name)}")
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            _refuse_unknown(value, source, prefix=f"{name}.")


def _suggestion(name: str) -> str:
    """What an unknown dotted name was probably meant to be: a near name beside it, or its like elsewhere."""
    if name in _field_types():  # a flag's dotted name as a key
        section, _, key = name.partition(".")
        return f"write {key} indented under {section}:"
    section, _, key = name.rpartition(".")
    siblings = [known.rpartition(".")[2] for known in _field_types() if known.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1)
    if near:
        return f"did you mean {f'{section}.{near[0]}' if section else near[0]}?"
    elsewhere = [known for known in _field_types() if known.rpartition(".")[2] == key]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"the keys {f'of {section}' if section else 'here'} are {', '.join(siblings)}"


def _whole(value: Any) -> Any:
    if isinstance(value, bool):  # Python's bool is an int; a configuration's is not
        raise dacite.WrongTypeError(int, value)
    if isinstance(value, int) and value not in WHOLE_NUMBERS:
        raise dacite.WrongTypeError(int, value)
    return value


def _number(value: Any) -> Any:
    # YAML 1.1 asks for `1.0e-4`; everybody writes 1e-4, which arrives here as text.
    plain = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if plain or isinstance(_whole(value), int) else value


def _optional(value: Any) -> Any:
    return None if value == "none" else value


def _sequence(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise dacite.WrongTypeError(tuple, value)
    return tuple(value)


_LIST_OF_NAMES = "a list of names such as [a, b], in quotes what is no name: ['1', 'true']"


def _expected(hint: Any) -> str:
    """A declared type in the user's words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(argument) for argument in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return "a list of whole numbers such as [0, 1]" if int in arguments else _LIST_OF_NAMES
    if dataclasses.is_dataclass(hint):
        return "a section: indented keys below it"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}[hint]
