"""Documents that others wrote: text, JSON and YAML read strictly, whatever is in the file.

A file may be cut off, of another kind, nested without end, or made to fill the memory. Every reader of the package
goes through here, so that each of these has one sentence, and none a traceback. What a document means is its caller's
business, and so is what the user can do about it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MOST_BYTES = 1 << 28
"""Largest file that is read as one document: 256 MiB, more than any configuration, index or page of figures has."""

MOST_LEVELS = 64
"""Deepest nesting of lists and objects. Documents that people and programs write have less than ten levels."""

MOST_VALUES = 1_000_000
"""Values of a YAML document once its aliases are written out: a few lines of them can stand for a billion."""

MOST_DIGITS = 4000
"""Digits of a number; Python itself refuses to read one that has more than 4300."""

WHOLE_NUMBERS = range(-(2**63), 2**63)
"""What is taken for a whole number where a field asks for one: what arrays can hold."""


class UnreadableError(ValueError):
    """Why a file is not the document that it should be.

    Attributes:
      problem: what is wrong, to stand behind the file's name: `is not UTF-8 text`.
      line: where, counted from 1; None where that means nothing.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line

    def at(self, path: object) -> str:
        """`path` and what is wrong with it, in one sentence."""
        return f"{path}{'' if self.line is None else f', line {self.line}'} {self.problem}"


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
      UnreadableError: the file cannot be read, is larger than `most_bytes`, is of another encoding, or holds no text.
    """
    try:
        # Through the system's own call, since a link that leads nowhere must not count as a file that is not there.
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a name with a null in it
        raise UnreadableError(f"cannot be read ({error})") from error
    if len(content) > most_bytes:
        raise UnreadableError(f"is larger than {most_bytes:,} bytes, which no such file is")
    return decoded(content)


def decoded(content: bytes) -> str:
    """The text in UTF-8 bytes, without a byte order mark.

    Raises:
      UnreadableError: the bytes are of another encoding, or of no text.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableError("is UTF-16 and not UTF-8 text; save it in that encoding")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError("is not UTF-8 text; save it in that encoding", line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UnreadableError("holds a null character, which no text has", line)
    return text


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      text: of the document.
      finite: whether NaN and infinities are refused, which JSON does not have and many a program writes.

    Raises:
      UnreadableError: it is not JSON, names a key twice, is nested too deeply, or has a number of thousands of digits.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_whole_number,
            parse_float=_finite_number if finite else float,
            parse_constant=_no_constant if finite else None,
        )
    except UnreadableError:
        raise
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UnreadableError("is empty") from error
        line = error.lineno if "\n" in text else None
        raise UnreadableError(f"is not valid JSON ({error.msg}, column {error.colno})", line) from error
    except RecursionError as error:
        raise UnreadableError(f"is nested more than {MOST_LEVELS} levels deep") from error
    if text.count("[") + text.count("{") > MOST_LEVELS:
        _refuse_deep(value)
    return value


def parse_json_object(text: str, *, finite: bool = True) -> dict[str, Any]:
    """The object of a JSON text; arguments and errors as those of `parse_json`, and one for any other value."""
    value = parse_json(text, finite=finite)
    if not isinstance(value, dict):
        raise UnreadableError(f"is {kind_of(value)}, not an object")
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UnreadableError: as `read_text` and `parse_json_object`.
    """
    return parse_json_object(read_text(path))


class YamlMapping(NamedTuple):
    """A YAML document: its mapping, and the node that knows the lines; None for a document that is empty."""

    value: dict[str, Any]
    node: yaml.Node | None


def parse_yaml(text: str) -> YamlMapping:
    """The mapping of a YAML text; an empty text is an empty mapping.

    Raises:
      UnreadableError: it is not YAML, no mapping, nested too deeply, larger than `MOST_VALUES` once its aliases are
        written out, or has a number of thousands of digits.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_large(node)
        mapping = {} if node is None else loader.construct_document(node)
    except UnreadableError:
        raise
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise UnreadableError(
            f"is not valid YAML: {error.problem}; check indentation, colons and quotes here", line
        ) from (error)
    except yaml.reader.ReaderError as error:
        raise UnreadableError(
            f"is not valid YAML: the character #x{int(error.character):04x} may not be in a text",
            text.count("\n", 0, error.position) + 1,
        ) from error
    except RecursionError as error:
        raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, yaml.YAMLError) as error:
        # What a tag such as `!!int` or `!!timestamp` makes of a text that is none fails in ways of its own.
        raise UnreadableError(f"is not valid YAML: a value is not what its tag says ({_on_one_line(error)})") from error
    if not isinstance(mapping, dict):
        raise UnreadableError(f"holds {kind_of(mapping)} and no keys", 1)
    return YamlMapping(mapping, node)


class _Loader(yaml.SafeLoader):
    """Plain scalars without the surprises of YAML 1.1, where `off` is false, `010` is 8 and `1:30` is 90.

    Every text that `yaml.safe_dump` leaves unquoted is a text here too, so that what it writes reads back.
    """


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


class Kind(NamedTuple):
    """What the values of a field must be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or nothing."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.holds(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in WHOLE_NUMBERS


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a whole number from 0 on", lambda value: _is_whole(value) and value >= 0)
NUMBER = Kind("a number", _is_number)
TEXT = Kind("a text", _is_text)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
NUMBERS_BY_NAME = Kind(
    "an object of numbers", lambda value: isinstance(value, dict) and all(map(_is_number, value.values()))
)


def list_of(kind: Kind) -> Kind:
    """Lists of which every entry is of a kind."""
    return Kind(
        f"a list, each entry {kind.words}", lambda value: isinstance(value, list) and all(map(kind.holds, value))
    )


def either(*kinds: Kind) -> Kind:
    """What is of one kind or another."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


def check_fields(row: Mapping[str, Any], fields: Mapping[str, Kind], required: Iterable[str] = ()) -> None:
    """Refuses an object whose fields are not what they should be; fields that are not named may be anything.

    Args:
      row: the object.
      fields: name -> what its value must be where it is there.
      required: names that must be there.

    Raises:
      UnreadableError: naming the field.
    """
    for name in required:
        if name not in row:
            raise UnreadableError(f"has no field '{name}'")
    for name, kind in fields.items():
        if name in row and not kind.holds(row[name]):
            raise UnreadableError(f"has {shown(row[name])} as '{name}'; it must be {kind.words}")


def kind_of(value: Any) -> str:
    """What a value of JSON or YAML is, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(
        type(value), f"an object of type {type(value).__name__}" if not isinstance(value, dict) else "an object"
    )


def shown(value: Any, most: int = 60) -> str:
    """A value as a message shows it: shortened, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value not in WHOLE_NUMBERS:
        return f"a number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value[:most]) if isinstance(value, str) and len(value) > most else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def exists(path: Path) -> bool:
    """Whether there is something of that name, be it a link that leads nowhere: nobody may take it for nothing."""
    return os.path.lexists(path)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnreadableError(f"has the key {shown(twice)} twice; keep one of them")
    return value


def _whole_number(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise UnreadableError(f"has a number of {len(digits):,} digits")
    return int(digits)


def _finite_number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise UnreadableError(f"has the number {digits[:40]}, which is too large")
    return number


def _no_constant(name: str) -> float:
    raise UnreadableError(f"has {name}, which is no number of JSON")


def _refuse_deep(value: Any) -> None:
    level, at_level = 0, [value]
    while at_level := [inner for outer in at_level if isinstance(outer, dict | list) for inner in _inside(outer)]:
        level += 1
        if level > MOST_LEVELS:
            raise UnreadableError(f"is nested more than {MOST_LEVELS} levels deep")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _refuse_large(node: yaml.Node | None) -> None:
    """Refuses what would not fit once its aliases are written out, and what contains itself."""
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measured(part: yaml.Node, level: int) -> tuple[int, int]:
        """Values of a node, and its levels."""
        if isinstance(part, yaml.ScalarNode):
            if part.tag.endswith(":int") and len(part.value) > MOST_DIGITS:
                raise UnreadableError(f"has a number of {len(part.value):,} digits", part.start_mark.line + 1)
            return 1, 0
        if id(part) in sizes:
            return sizes[id(part)]
        line = part.start_mark.line + 1
        if id(part) in open_nodes:
            raise UnreadableError("is not valid YAML: an alias is part of what it stands for", line)
        if level > MOST_LEVELS:
            raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep", line)
        open_nodes.add(id(part))
        inner = [one for pair in part.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        found = [measured(one, level + 1) for one in inner]
        open_nodes.discard(id(part))
        size, levels = 1 + sum(count for count, _ in found), 1 + max((depth for _, depth in found), default=0)
        if size > MOST_VALUES:
            raise UnreadableError("is not valid YAML: its aliases stand for more than a million values", line)
        if levels > MOST_LEVELS:
            raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep", line)
        sizes[id(part)] = size, levels
        return size, levels

    if node is not None:
        measured(node, 0)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
