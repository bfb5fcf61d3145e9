"""GSM8K: grade-school word problems, answered with a worked solution and a final number.

The released layout and the hub's `openai/gsm8k` are one and the same: `question`, and an `answer` that ends in
`#### N`. Calculator notes such as `<<48/2=24>>` are part of what the model learns to write and stay in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from star_jax.data.tasks.fields import invalid_field, optional_text_field, text_field
from star_jax.data.tasks.numbers import numbers
from star_jax.data.tasks.task import Task

INSTRUCTION = "\nAnswer the above question. First think step by step and then answer the final number.\n"
"""Follows the question; ends in a line break, so that a response begins on a token boundary."""
ANSWER_MARK = "####"
ANSWER_PHRASE = "The final answer is"
"""Stands in the response where the data set has `ANSWER_MARK`."""

_FINAL = rf"(?:{ANSWER_PHRASE}|{ANSWER_MARK})"
_FINAL_LINE = re.compile(rf"^\s*{_FINAL}[:\s]*(.*)", re.IGNORECASE | re.MULTILINE)
_FINAL_ANYWHERE = re.compile(rf"{_FINAL}[:\s]*((?:(?!{_FINAL}).)*)", re.IGNORECASE)


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
        return _first(numbers(line) for line in lines)
    if tails := _FINAL_ANYWHERE.findall(text):
        return _first(numbers(tail) for tail in reversed(tails))
    return _first([numbers(text)[::-1]])


def _first(candidates: Iterable[list[str]]) -> str | None:
    return next((found[0] for found in candidates if found), None)


GSM8K = Task(name="gsm8k", prompt=prompt, response=response, parse=parse)
