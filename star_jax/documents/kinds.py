"""What the fields of a document must be, in words and as a test; and how a message shows a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from star_jax.documents.text import UnreadableError

WHOLE_NUMBERS = range(-(2**63), 2**63)
"""What is taken for a whole number where a field asks for one: what arrays can hold."""


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
