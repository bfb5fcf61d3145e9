"""BoolQ: yes/no questions, answered with "the correct answer is true" or "... false".

Two layouts: the released one has the question already wrapped in an instruction and the answer in words; the
hub's `google/boolq` has the bare `question`, a `passage`, and the `answer` as a bool. Task `boolq` is the paper's
experiment, question only, and gives the same prompt from both; `boolq_passage` puts the passage before the question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from star_jax.data.examples import Prompt
from star_jax.data.tasks.fields import invalid_field, optional_text_field, text_field
from star_jax.data.tasks.task import Task

INSTRUCTION = "Please answer the following question with true or false, question: "
ANSWER_FORMAT = "\n\nAnswer format: true/false"
CANDIDATES = ("the correct answer is true", "the correct answer is false")

_QUESTION_WORDS = ("is", "are", "was", "were", "can", "do", "does", "did", "has", "have", "will")
_VERDICT = re.compile(r"(?<!not )(?<!n't )\b(true|false)\b")
_EITHER = re.compile(r"\btrue\s*(?:/|or)\s*false\b")


def prompt(row: Mapping[str, Any]) -> str:
    """The wrapped question.

    It ends in a line break: straight after "true/false" the response's first letters would run into that word.
    """
    question = text_field(row, "question").strip()
    if not question.startswith(INSTRUCTION):
        question = f"{INSTRUCTION}{question.rstrip('? ')}?{ANSWER_FORMAT}"
    return f"{question}\n"


def prompt_with_passage(row: Mapping[str, Any]) -> str:
    """The passage, then the wrapped question."""
    return f"Passage: {text_field(row, 'passage').strip()}\n\n{prompt(row)}"


def response(row: Mapping[str, Any]) -> str | None:
    """One of `CANDIDATES`.

    Raises:
      DataError: the answer is neither a bool nor a text that says true or false.
    """
    answer = row.get("answer")
    if not isinstance(answer, bool):
        text = optional_text_field(row, "answer")
        if text is None:
            return None
        verdict = parse(text)
        if verdict is None:
            raise invalid_field(row, "answer", "true, false, or a sentence that says which")
        answer = verdict == "true"
    return CANDIDATES[0] if answer else CANDIDATES[1]


def parse(text: str) -> str | None:
    """`true` or `false`, or None for a text that says neither or leaves it open.

    The verdict that follows the first "answer is" on its line counts; without one, the text must hold only one of
    the two words. A negated word and the instruction's own "true/false" are no verdict.
    """
    text = _EITHER.sub(" ", text.lower().replace("\u2019", "'"))
    for tail in text.split("answer is")[1:]:
        if verdict := _VERDICT.search(tail.strip().partition("\n")[0]):
            return verdict[1]
    verdicts = set(_VERDICT.findall(text))
    return verdicts.pop() if len(verdicts) == 1 else None


def group(prompt: Prompt) -> str:
    """The question's first word, or `other` for a rare one."""
    question = prompt.text.rpartition(INSTRUCTION)[2].lower()
    return next((word for word in _QUESTION_WORDS if question.startswith(f"{word} ")), "other")


BOOLQ_PASSAGE = Task(
    name="boolq_passage",
    prompt=prompt_with_passage,
    response=response,
    parse=parse,
    candidates=CANDIDATES,
    group=group,
)
BOOLQ = Task(name="boolq", prompt=prompt, response=response, parse=parse, candidates=CANDIDATES, group=group)
