"""The format in which the released STAR code scores an example, whatever data set it is from.

One prompt suffix and one rewriting of the answer serve all three data sets, the suffix even where it makes no sense,
nothing is stripped, prompt and response are tokenised as one text, and no end-of-sequence token is added. It exists to
reproduce published scores; the other tasks of this package are the ones to train on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from star_jax.data.tasks.fields import optional_text_field, text_field
from star_jax.data.tasks.gsm8k import ANSWER_MARK, ANSWER_PHRASE, INSTRUCTION
from star_jax.data.tasks.task import Task


def prompt(row: Mapping[str, Any]) -> str:
    """The question, unchanged, followed by GSM8K's instruction."""
    return text_field(row, "question") + INSTRUCTION


def response(row: Mapping[str, Any]) -> str | None:
    """The answer, unchanged but for `####`."""
    answer = optional_text_field(row, "answer")
    return None if answer is None else answer.replace(ANSWER_MARK, ANSWER_PHRASE)


def parse(text: str) -> str | None:
    """The whole text without blanks around it: responses of different data sets have no common answer to read."""
    return text.strip() or None


RELEASED = Task(name="released", prompt=prompt, response=response, parse=parse, append_eos=False, joint_tokens=True)
