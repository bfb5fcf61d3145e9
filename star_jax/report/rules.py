"""When a task counts an answer as right, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_VERDICT = (
    "the verdict true or false that the text gives must be the reference's; a text that gives none or both is wrong"
)

RULES = {
    "skills": "all tokens of the answer, up to the end of the sequence, must be those of the reference",
    "boolq": _VERDICT,
    "boolq_passage": _VERDICT,
    "gsm8k": "the final number, behind “The final answer is” or ####, or else the last one of the text, must be the "
    "reference's number, however it is written",
    "openbookqa": "the letter A to D that the text names as its answer must be the reference's; a text that names none "
    "or several is wrong",
    "released": "the whole text must be the reference's, but for blanks around it",
}
"""Task that ships with the package -> its rule. That of `generic` depends on how answers are matched."""

MATCHES = {
    "exact": "the text must be the reference's, but for blanks and capitals",
    "numeric": "the last number of the text must be the last number of the reference, however it is written",
    "choice": "the text must name the reference's choice, by its letter or its text; one that names none or several is "
    "wrong",
}
"""`format.match` -> the rule of `generic`."""


def rule_of(config: Mapping[str, Any]) -> str:
    """The rule of a run's task.

    Args:
      config: the resolved configuration, nested plain values; settings that it lacks have their default.
    """
    task = config.get("data", {}).get("task", "skills")
    if task == "generic":
        return MATCHES.get(config.get("format", {}).get("match", "exact"), "as format.match says")
    return RULES.get(task, f"as the function parse of the task {task} reads the answer and the reference")
