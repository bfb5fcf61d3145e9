"""Numbers in a text, in a canonical form that can be compared: what the tasks with numeric answers share."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(
    # A minus after a word, a digit or a bracket takes away; anywhere else it is a sign, with or without a currency.
    r"(?P<sign>(?<![\w)\].%])[-\u2212]\\?\$?)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<fraction>[0-9]+))?"
    r"|(?<![0-9])\.(?P<bare_fraction>[0-9]+))"
    # As programs write very large and very small floats.
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?!\w))?"
)


def numbers(text: str) -> list[str]:
    """Every number of the text in order: no thousands separators, no trailing zeros, no currency, no exponent."""
    return [_canonical(match) for match in _NUMBER.finditer(text)]


def last_number(text: str) -> str | None:
    """The last number of the text in the form of `numbers`, or None."""
    found = numbers(text)
    return found[-1] if found else None


def _canonical(number: re.Match[str]) -> str:
    # Digits are handled as text: a float would merge large numbers that differ.
    whole = (number["whole"] or "").replace(",", "")
    fraction = number["fraction"] or number["bare_fraction"] or ""
    if exponent := number["exponent"]:
        whole, _, fraction = f"{Decimal(f'{whole or 0}.{fraction or 0}e{exponent}'):f}".partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if number["sign"] and size != "0" else size
