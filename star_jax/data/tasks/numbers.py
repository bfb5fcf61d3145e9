"""Numbers in a text, in a canonical form that can be compared: what the tasks with numeric answers share.

What groups the digits of a number differs with country and program; these are read:

  `1,234.50`  `12,34,567`              comma, also by twos as in India, and a decimal point
  `1.234,50`  `1.234.567`              point and a decimal comma; `1.234` alone has a decimal point
  `1 234,50`  `1'234.50`  `1_234`      blank of any width, apostrophe or underscore, and either decimal mark
  `1{,}234`  `1\\,234`  `\\$5`           as LaTeX writes them

An ordinary blank groups digits only where the next groups all have three, and no other number stands beside them.
Digits of other scripts, and wide ones, are read as well.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal

_CURRENCY = "$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u20ba\u20aa\u20bf"
# A minus after a word, a digit or a bracket takes away; anywhere else it is a sign, with or without a currency.
_SIGN = rf"(?P<sign>(?<![\w)\].%])[-\u2212\ufe63\uff0d](?:\\?[{_CURRENCY}] ?)?)?"
_HEAD = "[1-9][0-9]{0,2}"
_NO_MORE = r"(?![.,]?[0-9])"
_BY_COMMAS = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3})(?![0-9])(?:\.[0-9]+)?"
_BY_POINTS = rf"(?<![0-9.]){_HEAD}(?:(?:\.[0-9]{{3}})+,[0-9]+|(?:\.[0-9]{{3}}){{2,}}){_NO_MORE}"
_BY_MARKS = rf"{_HEAD}(?P<mark>[\u00a0\u2007-\u200a\u202f'\u2019\u02bc_])[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*(?![0-9])"
_BY_BLANKS = rf"(?<![0-9])(?<![0-9] ){_HEAD}(?: [0-9]{{3}})+(?![0-9])(?!(?:[.,][0-9]+)? [0-9])"
# With two digits or fewer, or in brackets, it is as likely a list or an interval.
_BELOW_ONE = rf"(?<![0-9.,(\[{{])0,[0-9]{{3,}}{_NO_MORE}"
_NUMBER = re.compile(
    rf"{_SIGN}(?:(?P<comma>{_BY_POINTS}|{_BELOW_ONE})|(?P<either>(?:{_BY_MARKS}|{_BY_BLANKS})(?:[.,][0-9]+)?)"
    rf"|(?P<point>{_BY_COMMAS}|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+))"
    # As programs write very large and very small floats.
    r"(?:[eE](?P<exponent>[-+]?[0-9]{1,3})(?!\w))?"
)

_LATEX_GROUP = re.compile(r"(?<=[0-9])\{,\}(?=[0-9]{3}(?![0-9])|[0-9]{2}\{,\})")
_LATEX_MARK = re.compile(r"(?<=[0-9])\{([.,])\}(?=[0-9])")
_LATEX_BLANK = re.compile(r"(?<=[0-9])(?:\\[,;:! ]|~)(?=[0-9]{3}(?![0-9]))")
_OTHER_MARKS = str.maketrans({"\u066b": ".", "\u066c": ",", "\uff0c": ",", "\uff0e": "."})


def numbers(text: str) -> list[str]:
    """Every number of the text in order: nothing that groups digits, no trailing zeros, no currency, no exponent."""
    return [_canonical(match) for match in _NUMBER.finditer(_plain(text))]


def last_number(text: str) -> str | None:
    """The last number of the text in the form of `numbers`, or None."""
    found = numbers(text)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """The text with ASCII digits, and without what LaTeX puts around the marks of a number."""
    if not text.isascii():
        text = text.translate(_OTHER_MARKS)
        text = "".join(str(unicodedata.decimal(one)) if one.isdecimal() else one for one in text)
    text = _LATEX_MARK.sub(".", _LATEX_GROUP.sub(",", text))
    return _LATEX_BLANK.sub("\u202f", text)


def _canonical(number: re.Match[str]) -> str:
    # Digits are handled as text: a float would merge large numbers that differ.
    mark = "," if number["comma"] else r"\." if number["point"] else "[.,]"
    whole, *rest = re.split(mark, number["comma"] or number["point"] or number["either"])
    whole, fraction = re.sub("[^0-9]", "", whole), "".join(rest)
    if exponent := number["exponent"]:
        whole, _, fraction = f"{Decimal(f'{whole or 0}.{fraction or 0}e{exponent}'):f}".partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if number["sign"] and size != "0" else size
