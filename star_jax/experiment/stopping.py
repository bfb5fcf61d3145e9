"""Whether a run stops before its last round, by `loop.stop_when` and the rounds that it has finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from star_jax.config.stop_rule import GAIN, StopRule
from star_jax.evaluation.forecast import LEVEL, forecast


def stop_reason(
    rule: StopRule | None, rows: Sequence[Mapping[str, Any]], more: int, tests: int | None = None
) -> str | None:
    """Why a run stops after its last finished round, in words; None where it goes on.

    A gain is small where the upper end of its 95 % interval is: a curve that cannot be told yet does not stop a run.

    Args:
      rule: None for none.
      rows: of metrics.jsonl.
      more: labels of another round.
      tests: size of the test set; None where it is not known.
    """
    if rule is None or not rows:
        return None
    figure = _most_gain(rows, more, tests) if rule.figure == GAIN else rows[-1].get(rule.figure)
    if figure is None or (figure >= rule.limit if rule.figure == GAIN else figure < rule.limit):
        return None
    after = f"after {len(rows)} round{'s' if len(rows) > 1 else ''}"
    if rule.figure == GAIN:
        return f"another {more} labels are expected to bring at most {figure:.4f} of accuracy, {after}"
    return f"{rule.figure} is {figure:.4f}, at least {rule.limit:g}, {after}"


def _most_gain(rows: Sequence[Mapping[str, Any]], more: int, tests: int | None) -> float | None:
    """Upper end of the interval of what the law through the curve gains with more labels; None for too few rounds."""
    curve = {row["labelled"]: float(row["accuracy"]) for row in rows if row["labelled"] > 0}
    found = forecast(list(curve), [list(curve.values())], tests)
    if found is None:
        return None
    gains = found.drawn.at(found.last + more) - found.drawn.at(found.last)
    return float(np.quantile(gains, (1 + LEVEL) / 2))
