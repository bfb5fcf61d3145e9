"""What a model is asked for a label, and how its answer is read. Pure: texts in, texts out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from star_jax.errors import DataError

FIELD = "answer"
"""Field of the JSON object that has the label; null where the model says that there is none."""

SHOWN = 4
"""Answers of a closed set that the form of an answer is shown with."""

Message = dict[str, Any]


class Shot(NamedTuple):
    """A label so far, as an example.

    Attributes:
      id: of the prompt.
      text: what was asked.
      answer: its label, as a person writes it; None where it cannot be labelled.
      trusted: whether a person gave it.
    """

    id: str
    text: str
    answer: str | None
    trusted: bool


def system_message(guidelines: str, answers: Sequence[str] | None) -> str:
    """What stands before everything else.

    Args:
      guidelines: of the user; empty for none.
      answers: of a closed set, as a person writes them.
    """
    parts = ["You label data. Read what the user sends, and give the answer that a careful expert would give."]
    if guidelines.strip():
        parts.append(f"Guidelines:\n{guidelines.strip()}")
    if answers:
        parts.append(f"The answer must be one of: {json.dumps(list(answers), ensure_ascii=False)}.")
    shown = [json.dumps({FIELD: answer}, ensure_ascii=False) for answer in (answers or ["..."])]
    parts.append(
        f"Write one JSON object and nothing else: {' or '.join(shown[:SHOWN])}, with the answer as a text. Where no "
        f"answer can be given, write {json.dumps({FIELD: None})}."
    )
    return "\n\n".join(parts)


def conversation(system: str, shots: Sequence[Shot], text: str) -> list[Message]:
    """The messages that ask for a label: examples stand before the question as earlier turns."""
    messages: list[Message] = [{"role": "system", "content": system}]
    for shot in shots:
        messages.append({"role": "user", "content": shot.text})
        messages.append({"role": "assistant", "content": json.dumps({FIELD: shot.answer}, ensure_ascii=False)})
    return [*messages, {"role": "user", "content": text}]


def asked_again(messages: Sequence[Message], problem: str) -> list[Message]:
    """The same question after an answer that could not be used, with what was wrong with it.

    The answer itself is left out: small models write it again where they see it.
    """
    question = messages[-1]["content"]
    wrong = f'{question}\n\n(An answer could not be used: {problem}. Write only {{"{FIELD}": "..."}}.)'
    return [*messages[:-1], {"role": "user", "content": wrong}]


def response_format(structured: str, answers: Sequence[str] | None) -> dict[str, Any] | None:
    """What `response_format` of a call says; None for nothing.

    Args:
      structured: `llm.structured`.
      answers: of a closed set.
    """
    if structured == "none":
        return None
    if structured == "object":
        return {"type": "json_object"}
    label: dict[str, Any] = {"type": ["string", "null"]} | ({"enum": [*answers, None]} if answers else {})
    schema = {"type": "object", "properties": {FIELD: label}, "required": [FIELD], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema}}


def read_answer(said: str) -> str | None:
    """The label in what a model has written: that of the first JSON object with the field, whatever stands around it.

    Args:
      said: all of it.

    Returns:
      The label, or None where the model says that there is none.

    Raises:
      DataError: there is no such object, or its label is neither a text nor a number.
    """
    decoder = json.JSONDecoder()
    for start in (place for place, character in enumerate(said) if character == "{"):
        try:
            found, _ = decoder.raw_decode(said, start)
        except (ValueError, RecursionError):
            continue
        if FIELD not in found:
            continue
        label = found[FIELD]
        if label is None or (isinstance(label, str) and label.strip()):
            return label
        if isinstance(label, int | float) and not isinstance(label, bool) and math.isfinite(label):
            return str(label)
        raise DataError(f"the field {FIELD} is {json.dumps(label)[:80]}, and must be a text")
    raise DataError(f"there is no JSON object with the field {FIELD} in it")


def choose_shots(shots: Sequence[Shot], count: int, name: str) -> list[Shot]:
    """Which labels so far an example is asked with: people's first, then by the hash of both ids.

    So different examples see different ones, and an example sees the same ones whenever it is asked. The most trusted
    stands last, next to the question.
    """
    others = (shot for shot in shots if shot.id != name)
    ordered = sorted(others, key=lambda shot: (not shot.trusted, hash_of(name, shot.id)))
    return ordered[:count][::-1]


def most_tokens(messages: Sequence[Message]) -> int:
    """More tokens than the messages can have: a token is at least a byte, and a chat template adds some a message."""
    return sum(len(str(message["content"]).encode()) + 64 for message in messages)


def hash_of(*texts: str) -> str:
    """Hash of some texts, told apart."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def is_audited(name: str, share: float) -> bool:
    """Whether a person is to label an example too: a share of all ids, by their hash, whoever asks and when."""
    return int(hash_of("audit", name)[:13], 16) / 16**13 < share
