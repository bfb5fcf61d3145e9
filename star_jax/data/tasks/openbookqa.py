"""OpenBookQA: elementary science questions with four choices, answered with a letter.

Two layouts: the released one has the choices in the question, on lines `AnswerA ...` (with a colon after the letter
in its test split) before "The correct answer is ", and a letter as the `answer`; the hub's `allenai/openbookqa`
has `question_stem`, `choices` and `answerKey`. Both give the same prompt, without the colon.

The space before the letter belongs to the response: prompts end in "answer is" and responses are " A" to " D".
Byte-level BPE and sentencepiece both spell a space and the word after it as one token, so that a prompt which kept
the space would end in a token that the full text does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from star_jax.data.tasks.choices import choice_reader
from star_jax.data.tasks.fields import invalid_field, optional_text_field, text_field
from star_jax.data.tasks.task import Task

LETTERS = ("A", "B", "C", "D")
CUE = "The correct answer is"
CANDIDATES = tuple(f" {letter}" for letter in LETTERS)

_CHOICE_COLON = re.compile(r"^(Answer[A-D]):[ \t]*", re.MULTILINE)
_named = choice_reader(LETTERS)


def prompt(row: Mapping[str, Any]) -> str:
    """Question, one line a choice, and `CUE`.

    Raises:
      DataError: a field is missing, or `choices` are not four texts labelled A to D.
    """
    if "question_stem" in row:
        choices = _choices(row)
        lines = [text_field(row, "question_stem").strip(), *(f"Answer{letter} {choices[letter]}" for letter in LETTERS)]
        question = "\n".join(lines)
    else:
        question = _CHOICE_COLON.sub(r"\1 ", text_field(row, "question").strip())
    return question if question.endswith(CUE) else f"{question}\n{CUE}"


def response(row: Mapping[str, Any]) -> str | None:
    """A space and the letter; see the top of this file.

    Raises:
      DataError: the answer is not one of the four letters.
    """
    name = "answerKey" if "question_stem" in row else "answer"
    text = optional_text_field(row, name)
    if text is None:
        return None
    letter = parse(text)
    if letter is None:
        raise invalid_field(row, name, "one of the letters A, B, C, D")
    return f" {letter}"


def parse(text: str) -> str | None:
    """A letter, `A` to `D`, or None where none is named or several are.

    In this order: after the first "answer is" or "answer:"; at the beginning of the text, unless it is the article
    "A"; the only one mentioned as "(b)", "option B", "AnswerB".
    """
    place = _named(text)
    return None if place is None else LETTERS[place]


def _choices(row: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> text of a row in the hub's layout."""
    expected = "an object with lists 'text' and 'label', four texts labelled A, B, C, D"
    choices = row.get("choices")
    if not isinstance(choices, Mapping):
        raise invalid_field(row, "choices", expected)
    texts, labels = choices.get("text"), choices.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise invalid_field(row, "choices", expected)
    if not all(isinstance(value, str) and value.strip() for value in [*texts, *labels]) or sorted(labels) != [*LETTERS]:
        raise invalid_field(row, "choices", expected)
    return {label: text.strip() for label, text in zip(labels, texts, strict=True)}


OPENBOOKQA = Task(name="openbookqa", prompt=prompt, response=response, parse=parse, candidates=CANDIDATES)
