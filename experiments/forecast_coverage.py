"""How often forecasts of learning curves hold, on the recorded runs of experiments/results/skills.jsonl.xz.

    python experiments/forecast_coverage.py

A power law is fitted to the first rounds of each run, or of the mean of five runs, and its 95 % interval is compared
with the accuracy that later rounds had. All runs share one test set, so that its chance is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from evidence_tables import BASE, read

from star_jax.benchmarks.skills.generator import test_examples
from star_jax.evaluation.forecast import FEWEST_POINTS, forecast
from star_jax.evaluation.statistics import wilson_interval

STRATEGIES, GROUPS = ("star", "random"), (1, 5)


class Outcome(NamedTuple):
    """One forecast and what came: whether it held, its width, and how far the curve was above it."""

    held: bool
    width: float
    above: float


def outcomes(labels: Sequence[int], curves: np.ndarray, seen: int, tests: int, group: int) -> dict[int, list[Outcome]]:
    """Number of labels -> what came of the forecasts for it, a forecast for each group of consecutive seeds."""
    found: dict[int, list[Outcome]] = {count: [] for count in labels[seen:]}
    for first in range(0, len(curves) - group + 1, group):
        runs = curves[first : first + group]
        made = forecast(labels[:seen], runs[:, :seen], tests)
        assert made is not None
        for place in range(seen, len(labels)):
            value, low, high = made.accuracy(labels[place])
            came = float(runs[:, place].mean())
            found[labels[place]].append(Outcome(low <= came <= high, high - low, came - value))
    return found


def main() -> None:
    runs, tests = read(), len(test_examples())
    print("| forecast of | rounds seen | labels | held | share, 95 % interval | mean width | came out above by |")
    print("|---|---|---|---|---|---|---|")
    for group in GROUPS:
        for strategy in STRATEGIES:
            here = runs[BASE, strategy]
            rounds = [here[seed]["rounds"] for seed in sorted(here)]
            labels = [row["labelled"] for row in rounds[0]]
            curves = np.asarray([[row["accuracy"] for row in one] for one in rounds])
            for seen in range(FEWEST_POINTS, len(labels)):
                for count, found in outcomes(labels, curves, seen, tests, group).items():
                    print(row(f"{strategy}, {'a run' if group == 1 else f'mean of {group}'}", seen, count, found))


def row(name: str, seen: int, labels: int, found: Sequence[Outcome]) -> str:
    """One row of the table; the interval of the share is Wilson's, as if forecasts were independent."""
    held = sum(one.held for one in found)
    low, high = wilson_interval(held / len(found), len(found))
    width, above = (float(np.mean([getattr(one, part) for one in found])) for part in ("width", "above"))
    share = f"{held} of {len(found)} | {low:.2f} to {high:.2f}"
    return f"| {name} | {seen} | {labels} | {share} | {width:.3f} | {above:+.3f} |"


if __name__ == "__main__":
    main()
