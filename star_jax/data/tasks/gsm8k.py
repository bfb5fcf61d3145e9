"""GSM8K: grade-school word problems, answered with a worked solution and a final number.

The released layout and the hub's `openai/gsm8k` are one and the same: `question`, and an `answer` that ends in
`#### N`. Calculator notes such as `<<48/2=24>>` are part of what the model learns to write and stay in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from star_jax.data.tasks.fields import invalid_field, optional_text_field, text_field
from star_jax.data.tasks.task import Task

INSTRUCTION = "\nAnswer the above question. First think step by step and then answer the final number.\n"
"""Follows the question; ends in a line break, so that a response begins on a token boundary."""
ANSWER_MARK = "####"
ANSWER_PHRASE = "The final answer is"
"""Stands in the response where the data set has `ANSWER_MARK`."""

_FINAL = rf"(?:{ANSWER_PHRASE}|{ANSWER_MARK})"
_FINAL_LINE = re.compile(rf"^\s*{_FINAL}[:\s]*(.*)", re.IGNORECASE | re.MULTILINE)
_FINAL_ANYWHERE = re.compile(rf"{_FINAL}[:\s]*((?:(?!{_FINAL}).)*)", re.IGNORECASE)
_NUMBER = re.compile(
    # A minus after a word, a digit or a bracket takes away; anywhere else it is a sign, with or without a currency.
    r"(?P<sign>(?<![\w)\].%])[-\u2212]\\?\$?)?"
    r"(?:(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.(?P<fraction>[0-9]+))?"
    r"|(?<![0-9])\.(?P<bare_fraction>[0-9]+))"
)


def prompt(row: Mapping[str, Any]) -> str:
    """The question followed by `INSTRUCTION`."""
    return text_field(row, "question").strip() + INSTRUCTION


def response(row: Mapping[str, Any]) -> str | None:
    """The worked solution with `####` rewritten to `ANSWER_PHRASE`.

    Raises:
      DataError: the answer holds no number, so that no prediction could ever equal it.
    """
    answer = optional_text_field(row, "answer")
    if answer is None:
        return None
    if parse(answer) is None:
        raise invalid_field(row, "answer", "a solution that ends in '#### ' and the final number")
    return answer.strip().replace(ANSWER_MARK, ANSWER_PHRASE)


def parse(text: str) -> str | None:
    """The final number in canonical form: no thousands separators, no trailing zeros, no currency.

    Read from the first line that begins with the final-answer phrase (or `####`): whatever a model writes after
    that answers no question. Otherwise from the last place that has the phrase, for a solution may already speak
    of "the final answer" in its midst. Without the phrase, the last number of the text.
    """
    if lines := _FINAL_LINE.findall(text):
        return _first(_numbers(line) for line in lines)
    if tails := _FINAL_ANYWHERE.findall(text):
        return _first(_numbers(tail) for tail in reversed(tails))
    return _first([_numbers(text)[::-1]])


def _numbers(text: str) -> list[str]:
    return [_canonical(match) for match in _NUMBER.finditer(text)]


def _canonical(number: re.Match[str]) -> str:
    # Digits are handled as text: a float would merge large numbers that differ.
    whole = (number["whole"] or "").replace(",", "").lstrip("0") or "0"
    fraction = (number["fraction"] or number["bare_fraction"] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if number["sign"] and size != "0" else size


def _first(candidates: Iterable[list[str]]) -> str | None:
    return next((numbers[0] for numbers in candidates if numbers), None)


GSM8K = Task(name="gsm8k", prompt=prompt, response=response, parse=parse)
