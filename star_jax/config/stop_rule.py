"""When a run stops before its last round: one comparison, such as `accuracy >= 0.8`."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from star_jax.errors import ConfigError

GAIN = "forecast gain"
"""How much more accuracy the labels of another round will bring, as the learning curve's forecast has it."""

_RULE = re.compile(r"(accuracy|validation_accuracy)\s*>=\s*(\S+)|(forecast\s+gain)\s*<\s*(\S+)")


class StopRule(NamedTuple):
    """A rule.

    Attributes:
      figure: what is compared.
      limit: with what, from 0 to 1; an accuracy has to be as large, a gain smaller.
    """

    figure: Literal["accuracy", "validation_accuracy", "forecast gain"]
    limit: float


def stop_rule(text: str) -> StopRule:
    """The rule that a text says.

    Raises:
      ConfigError: it says none.

    Example:
      >>> stop_rule("accuracy >= 0.8")
      StopRule(figure='accuracy', limit=0.8)
    """
    found = _RULE.fullmatch(text.strip())
    try:
        limit = float(found[2] or found[4]) if found else -1.0
    except ValueError:
        limit = -1.0
    if found is None or not 0 <= limit <= 1:
        raise ConfigError(
            f"loop.stop_when is {text!r}; write accuracy >= 0.8, validation_accuracy >= 0.8 or {GAIN} < 0.01, with a "
            "number from 0 to 1"
        )
    if found[3]:
        return StopRule("forecast gain", limit)
    return StopRule("accuracy" if found[1] == "accuracy" else "validation_accuracy", limit)
