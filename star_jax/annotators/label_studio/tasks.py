"""Requests as tasks of Label Studio, and annotations as answers. Pure: no server is asked here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import quoteattr

from star_jax.annotators.annotator import Request
from star_jax.annotators.label_table import reasons
from star_jax.errors import DataError

QUESTION, CONTROL = "prompt", "answer"
"""Names of the text and of the control that answers it."""

JsonObject = dict[str, Any]


def labelling_interface(answers: Sequence[str] | None) -> str:
    """The XML of a project: the prompt, and choices or a text to write.

    Args:
      answers: of a closed set, as a person writes them; None for free answers.
    """
    if answers is None:
        control = f'<TextArea name="{CONTROL}" toName="{QUESTION}" maxSubmissions="1" editable="true" required="true"/>'
    else:
        choices = "".join(f"<Choice value={quoteattr(answer)}/>" for answer in answers)
        control = (
            f'<Choices name="{CONTROL}" toName="{QUESTION}" choice="single-radio" required="true">{choices}</Choices>'
        )
    return f'<View><Text name="{QUESTION}" value="${QUESTION}"/>{control}</View>'


def as_task(request: Request, answers: Sequence[str] | None, columns: Mapping[str, str]) -> JsonObject:
    """A request as a task, with the model's guess as its prediction where there is one.

    Args:
      request: for a label.
      answers: of a closed set; a guess that is none of them is no prediction.
      columns: others of the pool that a person is to see.
    """
    why = {name: value for name, value in reasons(request, None).items() if name != "guess"}
    strategy = {} if request.strategy is None else {"strategy": request.strategy}
    task: JsonObject = {"data": {**columns, **why, **strategy, "id": request.id, QUESTION: request.readable}}
    guess = (request.guess or "").strip()
    if guess and (answers is None or guess in answers):
        kind, value = ("textarea", {"text": [guess]}) if answers is None else ("choices", {"choices": [guess]})
        result = {"from_name": CONTROL, "to_name": QUESTION, "type": kind, "value": value}
        task["predictions"] = [{"model_version": request.strategy or "model", "result": [result]}]
    return task


def counting(annotations: Sequence[JsonObject]) -> JsonObject | None:
    """Of several annotations of a task, the one that counts: what is marked as ground truth, else the latest."""
    ordered = sorted(annotations, key=lambda one: (bool(one.get("ground_truth")), str(one.get("updated_at") or "")))
    return ordered[-1] if ordered else None


def written_text(annotation: JsonObject) -> str:
    """What a person has chosen or written.

    Raises:
      DataError: the annotation has no choice and no text, or several choices.
    """
    for result in annotation.get("result") or ():
        value = result.get("value") or {}
        found = value.get("choices") if result.get("type") == "choices" else value.get("text")
        found = [found] if isinstance(found, str) else found
        if result.get("type") not in ("choices", "textarea") or not found:
            continue
        if result["type"] == "choices" and len(found) > 1:
            raise DataError(f"{len(found)} answers are chosen; choose one")
        return "\n".join(map(str, found))
    raise DataError("the annotation has no answer in it; choose or write one, or skip the task")


def who(annotation: JsonObject) -> str | None:
    """Who gave it, as far as the server says."""
    by = annotation.get("completed_by")
    if isinstance(by, Mapping):
        return str(by.get("email") or by.get("id") or "") or None
    return None if by is None else f"user {by}"
