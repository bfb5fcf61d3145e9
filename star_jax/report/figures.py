"""The report's figures, each a function of runs that gives PNG files' bytes, none where there is nothing to draw.

Names are written beside the figures, on the page, where the reader's own fonts have their script; only the learning
curve, which is also a file by itself, has a legend of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from star_jax.evaluation.calibration import reliability_bins
from star_jax.evaluation.statistics import paired_difference
from star_jax.report.drawing import (
    GREY,
    GROUP_COLOURS,
    OTHER_COLOUR,
    WIDTH,
    Look,
    drawable,
    drawn,
    fonts_for,
    limit_labels,
    limit_rounds,
    limit_share,
    line,
    looks,
    settled_groups,
)
from star_jax.report.read import BASELINE, Comparison, Run, by_strategy, curve, mean_of_groups

LEGEND_GROUPS = 12
OTHER = "other"


class Panel(NamedTuple):
    """One picture of a figure: whose it is, or what it shows, and the PNG."""

    caption: str
    png: bytes


@drawn
def learning_curve(runs: Sequence[Run]) -> Figure:
    """Accuracy over labels: a thin line a seed and the mean, from the accuracy before training where that is known.

    A strategy that is alone has a band of one standard deviation; of several, the bands would cover each other, and
    `differences` says more.
    """
    import matplotlib

    groups, look = settled_groups(runs)
    matplotlib.rcParams["font.family"] = fonts_for(groups)
    figure = Figure(figsize=(WIDTH, 3.7))
    axes = figure.subplots()
    for run in runs:
        single = curve([run], "accuracy")
        alpha = 0.5 if len(runs) <= 8 else 0.2
        axes.plot(single.x, single.mean, color=look[run.strategy].colour, linewidth=0.8, alpha=alpha)
    # Later lines cover earlier ones, and the first strategy is the one to see.
    for strategy, members in reversed(groups.items()):
        name = f"{drawable(strategy)} ({len(members)} seed{'s' if len(members) != 1 else ''})"
        line(axes, curve(members, "accuracy"), look[strategy], name, band=len(groups) == 1)
    every = [(row["labelled"], row["accuracy"]) for run in runs for row in run.rows if row.get("accuracy") is not None]
    before = [run.base_accuracy for run in runs if run.base_accuracy is not None]
    if before:
        every.append((0, float(np.mean(before))))
        axes.plot(*every[-1], color="#333333", marker="D", linestyle="none", label="before training", clip_on=False)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on the test set")
    limit_labels(axes, [labels for labels, _ in every])
    limit_share(axes, [share for _, share in every])
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="best", fontsize=9)
    return figure


@drawn
def differences(comparisons: Sequence[Comparison], look: Mapping[str, Look]) -> Figure | None:
    """Accuracy minus random's of the same seed at each number of labels: mean, and its 95 % confidence interval."""
    shown = [comparison for comparison in comparisons if len(comparison.ours) > 1]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 3.7))
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=1)
    every: list[int] = []
    for place, comparison in enumerate(shown):
        labels = comparison.ours[0].column("labelled")
        every += labels
        pairs = zip(
            *(np.asarray([run.column("accuracy") for run in runs]).T for runs in (comparison.ours, comparison.theirs)),
            strict=True,
        )
        found = [paired_difference(ours, theirs) for ours, theirs in pairs]
        half = [0.0 if one.interval is None else (one.interval[1] - one.interval[0]) / 2 for one in found]
        # Side by side, so that the intervals of several strategies can be told apart.
        apart = (place - (len(shown) - 1) / 2) * 0.012 * (max(labels) - min(labels))
        style = look[comparison.strategy]
        axes.errorbar(
            np.add(labels, apart),
            [100 * one.mean for one in found],
            yerr=np.multiply(half, 100),
            color=style.colour,
            marker=style.marker,
            capsize=2.5,
            linewidth=1.6,
        )
    axes.set_xlabel("labels")
    axes.set_ylabel(f"points of accuracy above {BASELINE}")
    limit_labels(axes, every)
    return figure


def calibration(runs: Sequence[Run], bins: int) -> list[Panel]:
    """Reliability diagram of the last round, seeds pooled, and the calibration error over labels."""
    return [
        Panel("Reliability after the last round", _reliability(runs, bins)),
        Panel("Calibration error over labels", _calibration_error(runs)),
    ]


@drawn
def _reliability(runs: Sequence[Run], bins: int) -> Figure | None:
    groups, look = settled_groups(runs)
    if not any(row.get("confidence") is not None for run in runs for row in run.predictions):
        return None
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, linestyle="--")
    for strategy, members in reversed(groups.items()):
        pairs = [
            (row["confidence"], row["correct"])
            for run in members
            for row in run.predictions
            if row.get("confidence") is not None
        ]
        if pairs:
            confidence, correct = np.asarray(pairs, dtype=float).T
            table = reliability_bins(confidence, correct, bins)
            used = table.counts > 0
            x, y = table.confidence[used], table.accuracy[used]
            axes.plot(x, y, color=look[strategy].colour, linewidth=1.2, alpha=0.8)
            size = 12 + 160 * table.counts[used] / table.counts.sum()
            axes.scatter(x, y, s=size, color=look[strategy].colour, alpha=0.8, linewidths=0, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is correct")
    return figure


@drawn
def _calibration_error(runs: Sequence[Run]) -> Figure | None:
    groups, look = settled_groups(runs)
    lines = {strategy: curve(members, "ece") for strategy, members in groups.items()}
    if not any(points.x for points in lines.values()):
        return None
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    for strategy, points in reversed(lines.items()):
        line(axes, points, look[strategy], strategy, band=len(groups) == 1)
    axes.set(xlabel="labels", ylabel="expected calibration error")
    limit_labels(axes, [at for points in lines.values() for at in points.x])
    limit_share(axes, [0.0, *(value for points in lines.values() for value in points.mean)])
    return figure


def uncertainty_gap(runs: Sequence[Run]) -> list[Panel]:
    """How well base and full model's uncertainty find the full model's errors (AUROC), a panel a strategy."""
    groups, look = settled_groups(runs)
    shown = {
        name: members
        for name, members in groups.items()
        if any(curve(members, key).x for key in ("auroc", "auroc_base"))
    }
    return [Panel(name, _gap(members, look[name])) for name, members in shown.items()]


@drawn
def _gap(members: Sequence[Run], look: Look) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = figure.subplots()
    axes.axhline(0.5, color="#BBBBBB", linewidth=1)
    full, base = curve(members, "auroc", "round"), curve(members, "auroc_base", "round")
    line(axes, full, look, "full model")
    line(axes, base, look, "base model", linestyle="--", markerfacecolor="white")
    axes.set(xlabel="round", ylabel="AUROC against errors")
    axes.legend(loc="best", fontsize=9)
    limit_rounds(axes, [*full.x, *base.x])
    limit_share(axes, [0.5, *full.mean, *base.mean])
    return figure


def largest_groups(counts: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of all groups, those with the largest totals first, equal ones by name."""
    total: dict[str, float] = {}
    for item in counts:
        for name, count in item.items():
            total[name] = total.get(name, 0) + count
    return sorted(total, key=lambda name: (-total[name], name))


def picked(runs: Sequence[Run]) -> tuple[list[Panel], list[tuple[str, str]]]:
    """What was picked in each round by group: stacked bars, mean over seeds, a panel a strategy; and the legend.

    Returns:
      The panels, and name and colour of each group, those picked most first; nothing where there is one group only.
    """
    groups, _ = settled_groups(runs)
    counts: dict[str, dict[int, dict[str, float]]] = {}
    for strategy, members in groups.items():
        rounds = sorted({row["round"] for run in members for row in run.rows if row.get("picked_groups")})
        counts[strategy] = {
            number: mean_of_groups(
                [row.get("picked_groups") for run in members for row in run.rows if row["round"] == number], missing=0
            )
            for number in rounds
        }
    names = largest_groups([item for by_round in counts.values() for item in by_round.values()])
    if len(names) < 2:
        return [], []
    legend = list(zip(names, GROUP_COLOURS[:LEGEND_GROUPS], strict=False))
    rest = names[len(legend) :]
    tallest = max(sum(item.values()) for by_round in counts.values() for item in by_round.values())
    panels = [Panel(strategy, _bars(by_round, legend, rest, tallest)) for strategy, by_round in counts.items()]
    return panels, [*legend, *([(f"{OTHER} ({len(rest)})", OTHER_COLOUR)] if rest else [])]


@drawn
def _bars(
    by_round: Mapping[int, Mapping[str, float]],
    legend: Sequence[tuple[str, str]],
    rest: Sequence[str],
    tallest: float,
) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = figure.subplots()
    rounds = list(by_round)
    bottom = np.zeros(len(rounds))
    layers = [(colour, [by_round[at].get(name, 0.0) for at in rounds]) for name, colour in legend]
    layers.append((OTHER_COLOUR, [sum(by_round[at].get(name, 0.0) for name in rest) for at in rounds]))
    for colour, heights in layers:
        axes.bar(rounds, heights, bottom=bottom, color=colour, width=0.85, edgecolor="white", linewidth=0.4)
        bottom = bottom + heights
    axes.set(xlabel="round (0: the first labels)", ylabel="labels bought", ylim=(0, 1.03 * tallest))
    axes.grid(axis="x", visible=False)
    limit_rounds(axes, rounds)
    return figure


@drawn
def score_length(runs: Sequence[Run]) -> Figure | None:
    """Correlation of score and response length over the pool in each round."""
    groups, look = settled_groups(runs)
    lines = {name: curve(members, "score_length_correlation", "round") for name, members in groups.items()}
    lines = {name: points for name, points in lines.items() if points.x}
    if not lines:
        return None
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    axes.axhline(0, color="#999999", linewidth=1)
    for strategy, points in lines.items():
        line(axes, points, look[strategy], strategy)
    axes.set(ylim=(-1, 1), xlabel="round", ylabel="correlation")
    limit_rounds(axes, [at for points in lines.values() for at in points.x])
    return figure


def shown_looks(runs: Sequence[Run]) -> dict[str, Look]:
    """The look of every strategy of a report."""
    return looks(list(by_strategy(runs)))
