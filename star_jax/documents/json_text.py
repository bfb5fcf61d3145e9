"""JSON read strictly: a key once, numbers that are finite and of a length that is one, bounded nesting."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from star_jax.documents.kinds import kind_of, shown
from star_jax.documents.text import MOST_DIGITS, MOST_LEVELS, UnreadableError, read_text


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
