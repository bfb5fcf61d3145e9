"""Typed reading of a raw row's fields, for the tasks.

What belongs here: turning a missing, empty or wrongly typed field into one `DataError` that names the field.
The file and the line are put in front of it by `star_jax.data.loading`, which knows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from typing import Any

from star_jax.errors import DataError

_WHOLE = re.compile(r"\s*([-+]?[0-9]+)\.0+\s*")


class FieldError(DataError):
    """A field with a value that will not do; `problem` is the message without the field's name."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"field '{name}' {problem}")
        self.problem = problem


def text_field(row: Mapping[str, Any], name: str) -> str:
    """The field's text, exactly as it stands.

    Raises:
      DataError: the field is missing, null, no string, blank, or not valid Unicode.
    """
    text = optional_text_field(row, name)
    if text is None:
        state = "is empty" if not is_missing(row.get(name)) else f"is missing (the row has {field_names(row)})"
        raise DataError(f"field '{name}' {state}; fill it in, or choose the data.task that fits the file")
    return text


def optional_text_field(row: Mapping[str, Any], name: str) -> str | None:
    """The field's text, or None where the row has no such field or only blanks in it.

    Raises:
      DataError: the field is no string, or not valid Unicode.
    """
    value = row.get(name)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise FieldError(name, f"is {short(value)}; it must be a string")
    check_unicode(value, f"field '{name}'")
    return value if value.strip() else None


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN of any type, and the like of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    # NaN, which is what a number that is missing becomes in many a table, is the one number that does not equal itself.
    return isinstance(value, Number) and bool(value != value)


def whole_number(value: Any) -> Any:
    """`1` for the fraction 1.0, and "1" for the text "1.0"; any other value as it is."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and (found := _WHOLE.fullmatch(value)):
        return found[1]
    return value


def check_unicode(text: str, what: str) -> None:
    """Raises `DataError` where the text, `what` of the row, holds half of a surrogate pair.

    JSON can spell one, and no tokenizer can read it.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{what} holds an unpaired surrogate (\\ud800 to \\udfff); remove it")


def invalid_field(row: Mapping[str, Any], name: str, expected: str) -> FieldError:
    """The error for a field whose value makes no sense; `expected` says what would."""
    return FieldError(name, f"is {short(row.get(name))}; expected {expected}")


def field_names(row: Mapping[str, Any]) -> str:
    """What fields the row has, for messages."""
    return ", ".join(map(str, row)) or "no fields"


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
