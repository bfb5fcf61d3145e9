"""What the curves of a report say, in numbers and in sentences: what was gained, what it saved, whether to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from star_jax.evaluation.curves import labels_needed
from star_jax.evaluation.statistics import Slope, slope, wilson_interval
from star_jax.report.read import BASELINE, Comparison, Run, settled

NO_BREAK = "\N{NO-BREAK SPACE}"
PERCENT = f"{NO_BREAK}%"
MINUS = "\N{MINUS SIGN}"

LAST_ROUNDS = 4
"""Rounds at the end of the curves whose slope says whether going on pays."""

LITTLE = 0.005
"""Gain of accuracy a round below which more labels are said to add little."""

FEWEST_SEEDS, RESAMPLES = 5, 2000
"""Pairs of runs from which on the labels saved have an interval, and the resamples that it is taken from."""


class Saving(NamedTuple):
    """What a strategy saved against random at the accuracy that both have reached.

    Attributes:
      accuracy: the lower one of the two that they have after the last round.
      ours: labels with which the strategy first has it, None where its mean curve does not reach it.
      theirs: the same of random.
      total: labels after the last round.
      interval: 95 % of the labels saved when the seeds are drawn again, with replacement; None for too few seeds.
    """

    accuracy: float
    ours: float
    theirs: float
    total: int
    interval: tuple[float, float] | None

    @property
    def saved(self) -> float:
        """Labels that the strategy needed less; negative where it needed more."""
        return self.theirs - self.ours


def saving(comparison: Comparison) -> Saving:
    """The labels that a strategy saved, on the mean curves of the seeds that it shares with random.

    Both curves are taken to the lower of their last accuracies. There one of them has needed all labels, or, where it
    was higher in between, fewer.
    """
    rows = {row["labelled"]: place for place, row in enumerate(comparison.ours[0].rows)}
    labels, places = list(rows), list(rows.values())  # of rounds that bought nothing, the last one counts
    curves = [
        np.asarray([run.column("accuracy") for run in runs], dtype=float)[:, places]
        for runs in (comparison.ours, comparison.theirs)
    ]
    accuracy, ours, theirs = _reached(labels, *curves)
    interval = None
    pairs = len(comparison.ours)
    if pairs >= FEWEST_SEEDS:
        rng = np.random.default_rng(0)  # the same report each time it is built
        drawn = rng.integers(pairs, size=(RESAMPLES, pairs))
        found = [_reached(labels, *(curve[chosen] for curve in curves)) for chosen in drawn]
        low, high = np.quantile([b - a for _, a, b in found], [0.025, 0.975])
        interval = (float(low), float(high))
    return Saving(accuracy, ours, theirs, labels[-1], interval)


def _reached(labels: Sequence[int], ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """The lower of the last mean accuracies, and with how many labels each mean curve first has it."""
    means = [curve.mean(axis=0) for curve in (ours, theirs)]
    target = float(min(mean[-1] for mean in means))
    first, second = (labels_needed(labels, mean, target) for mean in means)
    assert first is not None, "the last point of either curve reaches it"
    assert second is not None, "the last point of either curve reaches it"
    return target, first, second


def said_saving(comparison: Comparison) -> str:
    """The labels saved, in one or two sentences."""
    found, name = saving(comparison), comparison.strategy
    seeds = len(comparison.ours)
    source = "one seed, which cannot say how much of it is chance" if seeds == 1 else f"mean curves of {seeds} seeds"
    ours, theirs = (_count(value) for value in (found.ours, found.theirs))
    first = (
        f"{percent(found.accuracy)} is the accuracy that both have reached: {name} with {ours} labels and {BASELINE} "
        f"with {theirs} ({source}, straight lines between rounds)"
    )
    if round(found.saved) > 0:
        share = f"{100 * found.saved / found.theirs:.0f}{PERCENT}"
        first += f". So {name} saved about {_count(found.saved)} labels, {share}"
    elif round(found.saved) < 0:
        first += f". So {name} saved none: it needed about {_count(-found.saved)} labels more"
    else:
        first += f". So {name} saved none"
    if found.interval is not None:
        low, high = (f"{MINUS if bound < -0.5 else ''}{_count(abs(bound))}" for bound in found.interval)
        first += f"; with the seeds drawn again, 95{PERCENT} of the savings lie between {low} and {high}"
    last = float(np.mean([run.last("accuracy") for run in comparison.ours]))
    beaten = (
        f" {BASELINE.capitalize()} did not reach the {percent(last)} that {name} ended with."
        if last > found.accuracy
        else ""
    )
    return f"{first}.{beaten}"


def _count(value: float) -> str:
    return f"{round(value):,}"


def trend(runs: Sequence[Run]) -> Slope | None:
    """How much accuracy the last rounds of some runs gained a round; None where there are too few to tell.

    The runs are those of one strategy that have come as far as the one that has come furthest.
    """
    most = max((len(run.rows) for run in runs), default=0)
    curves = [run.column("accuracy")[-LAST_ROUNDS:] for run in runs if len(run.rows) == most]
    curves = [curve for curve in curves if None not in curve]
    if most < 3 or not curves:
        return None
    return slope(np.arange(len(curves[0])), curves)


def said_trend(runs: Sequence[Run]) -> str:
    """Whether labelling more is likely to pay, in one sentence."""
    found = trend(runs)
    if found is None or found.interval is None:
        return "Too few rounds yet to say whether accuracy still rises; that takes three."
    longest = max(runs, key=lambda run: len(run.rows))
    rounds = min(LAST_ROUNDS, len(longest.rows))
    step = longest.config.get("loop", {}).get("labels_per_round")
    each = f"a round of {step:,} labels" if step else "a round"
    low, high = found.interval
    told = (
        f"Over the last {rounds} rounds accuracy {'rose' if found.value >= 0 else 'fell'} by "
        f"{abs(100 * found.value):.1f} points {each} (95{PERCENT} interval {_points(low)} to {_points(high)}"
        f"{', from the scatter of one run' if len(runs) == 1 else ''})"
    )
    if low > 0:
        return f"{told}: it still rises, so another round is likely to pay."
    if high < LITTLE:
        return f"{told}: more labels of this kind are unlikely to add much."
    return f"{told}: that leaves open whether another round would pay."


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}{PERCENT}"


def mean_of(runs: Sequence[Run], name: str) -> float | None:
    """Mean of a metric after the last round, over the runs that have it."""
    values = [run.last(name) for run in runs if run.last(name) is not None]
    return float(np.mean(values)) if values else None


def said_result(strategy: str, members: Sequence[Run]) -> str:
    """What one strategy has come to, in one sentence, without comparing it."""
    runs = settled(members)
    accuracy = mean_of(runs, "accuracy")
    share = "an unknown share" if accuracy is None else percent(accuracy)
    tests = runs[0].facts.get("test_examples")
    by = f"picked by {strategy}" if strategy != BASELINE else "picked at random"
    sure = ""
    if accuracy is not None and tests and len(runs) == 1:
        low, high = (percent(bound) for bound in wilson_interval(accuracy, tests))
        sure = f" ({low} to {high} at 95{PERCENT}, as far as the size of the test set goes)"
    elif len(runs) > 1:
        sure = f", on average over {len(runs)} seeds"
    of = f"the {tests:,} test examples" if tests else "the test set"
    labels = max(run.last("labelled") for run in runs)
    return f"With {labels:,} labels, {by}, the model answers {share} of {of} correctly{sure}."


def said_before(members: Sequence[Run]) -> str | None:
    """How good the base model is, and what training added; None where it was not recorded."""
    runs = [run for run in settled(members) if run.base_accuracy is not None and run.last("accuracy") is not None]
    if not runs:
        return None
    before = float(np.mean([run.base_accuracy for run in runs]))
    gained = 100 * (float(np.mean([run.last("accuracy") for run in runs])) - before)
    verb = "added" if gained >= 0 else "took away"
    return (
        f"The base model answers {percent(before)} of the test set correctly; training on "
        f"{max(run.last('labelled') for run in runs):,} labels {verb} {abs(gained):.1f} points."
    )


def signed(text: str) -> str:
    """Typographic minus signs."""
    return text.replace("-", MINUS)
