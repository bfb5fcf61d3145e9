"""Where the curves of a report are going, in sentences: labels to a target accuracy, and when that cannot be told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from star_jax.evaluation.curves import labels_needed
from star_jax.evaluation.forecast import FARTHEST, FEWEST_POINTS, CurveForecast, forecast
from star_jax.report.findings import NO_BREAK, PERCENT, percent
from star_jax.report.read import Run, by_strategy, settled

WORDS = {3: "three", 4: "four", 5: "five"}


def said_outlook(runs: Sequence[Run], target: float | None = None) -> str:
    """What a strategy's curve says of the labels to come, in one or two sentences.

    Args:
      runs: those of one strategy; as in `findings.trend`, those count that have come furthest.
      target: an accuracy; None for the accuracy with twice the labels.
    """
    most = max((len(run.rows) for run in runs), default=0)
    longest = [run for run in runs if len(run.rows) == most and None not in run.column("accuracy")]
    if not longest:
        return f"Too few rounds yet to say where accuracy is going; that takes {WORDS[FEWEST_POINTS]}."
    # Curves with the same numbers of labels have a mean; of rounds that bought nothing, the last one counts.
    places = dict(sorted((row["labelled"], place) for place, row in enumerate(longest[0].rows) if row["labelled"] > 0))
    same = [run for run in longest if run.column("labelled") == longest[0].column("labelled")]
    labels, curves = list(places), np.asarray([run.column("accuracy") for run in same], float)[:, [*places.values()]]
    if target is not None and (reached := labels_needed(labels, curves.mean(axis=0), target)) is not None:
        return f"{percent(target)} was reached with about {_count(reached)} labels{_of(same)}."
    found = forecast(labels, curves, same[0].facts.get("test_examples"))
    if found is None:
        return f"Too few rounds yet to say where accuracy is going; that takes {WORDS[FEWEST_POINTS]}."
    return (_said_accuracy(found) if target is None else _said_labels(found, target)) + _of(same) + "."


def _said_accuracy(found: CurveForecast) -> str:
    labels = 2 * found.last
    value, low, high = found.accuracy(labels)
    return (
        f"If accuracy goes on as a power law of the labels, it will be {percent(value)} with twice as many, "
        f"{_count(labels)} (95{PERCENT} interval {percent(low)} to {percent(high)})"
    )


def _said_labels(found: CurveForecast, target: float) -> str:
    value, low, high = found.labels_for(target)
    most = FARTHEST * found.last
    if high <= most:
        return (
            f"If accuracy goes on as a power law of the labels, {percent(target)} takes about {_count(value)} labels "
            f"in all, {_count(max(value - found.last, 0))} more (95{PERCENT} interval {_count(low)} to {_count(high)})"
        )
    least = f"at least about {_count(low)}" if low <= most else f"more than {_count(most)}"
    never = float(np.isinf(found.drawn.labels_for(target)).mean())
    may = f"; in {100 * never:.0f}{PERCENT} of the resamples it never gets there" if never else ""
    return f"The curve cannot tell how many labels {percent(target)} takes: {least}, and no upper bound{may}"


def print_outlook(runs: Sequence[Run], target: float, before: str = "") -> None:
    """Prints a line a strategy to stdout, with something before its name."""
    for strategy, members in by_strategy(runs).items():
        print(f"{before}{strategy}: {said_outlook(settled(members), target)}".replace(NO_BREAK, " "))


def _of(runs: Sequence[Run]) -> str:
    return " (one seed)" if len(runs) == 1 else f" (mean of {len(runs)} seeds)"


def _count(value: float) -> str:
    return f"{round(value):,}"
