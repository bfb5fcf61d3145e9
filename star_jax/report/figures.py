"""The report's figures, each a function of runs that gives a PNG file's bytes, none where there is nothing to draw.

Colours come from Okabe and Ito's palette, which colour-blind readers can tell apart; a strategy keeps its
colour and marker in every figure of a report, and random is grey.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from star_jax.evaluation.calibration import reliability_bins
from star_jax.report.read import BASELINE, Curve, Run, by_strategy, curve, mean_of_groups, settled

P = ParamSpec("P")

GREY = "#7A7A7A"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")

GROUP_COLOURS = (
    "#332288",
    "#88CCEE",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#AA4499",
    "#44AA99",
    "#882255",
    "#999933",
    "#6699CC",
    "#661100",
    "#E69F00",
)
OTHER_COLOUR = "#C8C8C8"

PHASE_COLOURS = {
    "train": "#4477AA",
    "score": "#EE6677",
    "evaluate": "#CCBB44",
    "compile": "#AA3377",
    "load": "#66CCEE",
    "write": "#228833",
    "other": "#BBBBBB",
}
"""Phase of `tracking.timing.PHASES` -> its colour, in Paul Tol's bright scheme."""

STYLE: Any = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 144,
    "savefig.facecolor": "white",
}
"""Everything about how the figures look that is not a strategy's own."""

FULL_WIDTH, HALF_WIDTH = 9.6, 5.2  # inches; the page gives one or two figures a row
PANELS_A_ROW = 3
LEGEND_GROUPS = 12
DOT_GROUPS = 30


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn."""

    colour: str
    marker: str


def looks(strategies: Sequence[str]) -> dict[str, Look]:
    """A colour and marker for each strategy; beyond seven, colours return with another marker."""
    chosen = {}
    others = [name for name in strategies if name != BASELINE]
    for index, name in enumerate(others):
        chosen[name] = Look(COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)])
    if BASELINE in strategies:
        chosen[BASELINE] = Look(GREY, "o")
    return chosen


def _shown(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], dict[str, Look]]:
    """The settled runs of each strategy that has any, and the look of every strategy."""
    groups = by_strategy(runs)
    found = {name: settled(members) for name, members in groups.items()}
    return {name: members for name, members in found.items() if members}, looks(list(groups))


def _drawn(draw: Callable[P, Figure | None]) -> Callable[P, bytes]:
    """Runs a drawing function in the report's style, whatever the user's own, and renders what it gives."""

    @functools.wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with matplotlib.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            if figure is None:
                return b""
            FigureCanvasAgg(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            return buffer.getvalue()

    return render


def _line(axes: Axes, points: Curve, look: Look, label: str, **options: Any) -> None:
    """Mean line with a band of one standard deviation over the seeds."""
    style = {"color": look.colour, "marker": look.marker, **options}
    axes.plot(points.x, points.mean, label=label, **style)
    low, high = np.subtract(points.mean, points.sd), np.add(points.mean, points.sd)
    if np.any(high > low):
        axes.fill_between(points.x, low, high, color=look.colour, alpha=0.15, linewidth=0)


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))


def _panels(count: int, height: float, ylabel: str) -> tuple[Figure, list[Axes]]:
    """A grid of small panels on common axes; the places left over stay empty."""
    columns = 2 if count == 4 else min(count, PANELS_A_ROW)
    rows = -(-count // columns)
    figure = Figure(figsize=(FULL_WIDTH, height * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    panels = list(grid.flat)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    for axes in panels:
        axes.tick_params(labelbottom=True)
    for empty in panels[count:]:
        empty.set_visible(False)
    return figure, panels[:count]


@_drawn
def learning_curve(runs: Sequence[Run]) -> Figure:
    """Accuracy over labels: a thin line a seed, the mean, and a band of one standard deviation."""
    figure = Figure(figsize=(FULL_WIDTH, 4.6))
    axes = figure.subplots()
    groups, look = _shown(runs)
    for run in runs:
        single = curve([run], "accuracy")
        axes.plot(single.x, single.mean, color=look[run.strategy].colour, linewidth=0.8, alpha=0.45)
    # Later lines cover earlier ones, and the first strategy is the one to see.
    for strategy, members in reversed(groups.items()):
        name = f"{strategy} ({len(members)} seed{'s' if len(members) != 1 else ''})"
        _line(axes, curve(members, "accuracy"), look[strategy], name)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on the test set")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="lower right")
    _whole_numbers(axes)
    return figure


@_drawn
def calibration(runs: Sequence[Run], bins: int) -> Figure | None:
    """Reliability diagram of the last round, seeds pooled, beside the calibration error over labels."""
    groups, look = _shown(runs)
    figure = Figure(figsize=(FULL_WIDTH, 4.2))
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, linestyle="--")
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
            left.plot(x, y, color=look[strategy].colour, linewidth=1.2, alpha=0.8)
            size = 12 + 160 * table.counts[used] / table.counts.sum()
            left.scatter(x, y, s=size, color=look[strategy].colour, alpha=0.8, linewidths=0)
        _line(right, curve(members, "ece"), look[strategy], strategy)
    left.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share that is correct")
    left.set_title("Reliability after the last round")
    right.set(xlabel="labels", ylabel="expected calibration error")
    right.set_title("Calibration error over labels")
    right.set_ylim(bottom=0)
    _whole_numbers(right)
    handles, names = right.get_legend_handles_labels()
    right.legend(handles[::-1], names[::-1])
    return figure


@_drawn
def uncertainty_gap(runs: Sequence[Run]) -> Figure | None:
    """How well base and full model's uncertainty find the full model's errors (AUROC), a panel a strategy."""
    groups, look = _shown(runs)
    shown = {
        name: members
        for name, members in groups.items()
        if any(curve(members, key).x for key in ("auroc", "auroc_base"))
    }
    if not shown:
        return None
    figure, panels = _panels(len(shown), 3.1, "AUROC against errors")
    for axes, (strategy, members) in zip(panels, shown.items(), strict=True):
        axes.axhline(0.5, color="#BBBBBB", linewidth=1)
        full, base = curve(members, "auroc", "round"), curve(members, "auroc_base", "round")
        _line(axes, full, look[strategy], "full model")
        _line(axes, base, look[strategy], "base model", linestyle="--", markerfacecolor="white")
        axes.set_title(strategy)
        axes.set_xlabel("round")
        axes.legend(loc="best", fontsize=8.5)
        _whole_numbers(axes)
    return figure


def largest_groups(counts: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of all groups, those with the largest totals first, equal ones by name."""
    total: dict[str, float] = {}
    for item in counts:
        for name, count in item.items():
            total[name] = total.get(name, 0) + count
    return sorted(total, key=lambda name: (-total[name], name))


@_drawn
def picked(runs: Sequence[Run]) -> Figure | None:
    """What was picked in each round by group: stacked bars, mean over seeds, a panel a strategy."""
    groups, _ = _shown(runs)
    counts: dict[str, dict[int, dict[str, float]]] = {}
    for strategy, members in groups.items():
        rounds = sorted({row["round"] for run in members for row in run.rows if row.get("picked_groups")})
        counts[strategy] = {
            number: mean_of_groups(
                [row.get("picked_groups") for run in members for row in run.rows if row["round"] == number], missing=0
            )
            for number in rounds
        }
    every = [item for by_round in counts.values() for item in by_round.values()]
    names = largest_groups(every)
    if len(names) < 2:
        return None
    shown, rest = names[:LEGEND_GROUPS], names[LEGEND_GROUPS:]
    colours = dict(zip(shown, GROUP_COLOURS, strict=False))
    figure, panels = _panels(len(counts), 3.2, "labels bought")
    for axes, (strategy, by_round) in zip(panels, counts.items(), strict=True):
        rounds = list(by_round)
        bottom = np.zeros(len(rounds))
        layers = [(name, colours[name], [by_round[at].get(name, 0.0) for at in rounds]) for name in shown]
        if rest:
            layers.append(("other", OTHER_COLOUR, [sum(by_round[at].get(name, 0.0) for name in rest) for at in rounds]))
        for _, colour, heights in layers:
            axes.bar(rounds, heights, bottom=bottom, color=colour, width=0.85, edgecolor="white", linewidth=0.4)
            bottom = bottom + heights
        axes.set_title(strategy)
        axes.set_xlabel("round (0: at random)")
        axes.grid(axis="x", visible=False)
        _whole_numbers(axes)
    handles = [Patch(color=colour, label=name) for name, colour, _ in layers]
    figure.legend(handles=handles[::-1], loc="outside right upper", title="group", fontsize=8.5)
    return figure


@_drawn
def group_accuracy(runs: Sequence[Run]) -> Figure | None:
    """Accuracy by group after the last round, mean over seeds, one dot a strategy."""
    groups, look = _shown(runs)
    values = {
        strategy: mean_of_groups([run.last("group_accuracy") for run in members])
        for strategy, members in groups.items()
    }
    names = sorted(
        {name for item in values.values() for name in item},
        key=lambda name: (float(np.mean([item[name] for item in values.values() if name in item])), name),
    )
    if len(names) < 2:
        return None
    title = f"The {DOT_GROUPS} hardest of {len(names)} groups" if len(names) > DOT_GROUPS else ""
    names = names[:DOT_GROUPS]
    figure = Figure(figsize=(FULL_WIDTH, 1.3 + 0.24 * len(names)))
    axes = figure.subplots()
    for height, name in enumerate(names):
        present = [item[name] for item in values.values() if name in item]
        axes.plot([min(present), max(present)], [height, height], color="#CCCCCC", linewidth=2, zorder=1)
    for strategy, item in reversed(values.items()):
        at = [index for index, name in enumerate(names) if name in item]
        style = look[strategy]
        axes.scatter(
            [item[names[index]] for index in at],
            at,
            s=42,
            color=style.colour,
            marker=style.marker,
            label=strategy,
            zorder=2,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy after the last round")
    axes.set_title(title)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=6)
    return figure


@_drawn
def score_length(runs: Sequence[Run]) -> Figure | None:
    """Correlation of score and response length over the pool in each round."""
    groups, look = _shown(runs)
    lines = {name: curve(members, "score_length_correlation", "round") for name, members in groups.items()}
    lines = {name: points for name, points in lines.items() if points.x}
    if not lines:
        return None
    figure = Figure(figsize=(HALF_WIDTH, 3.4))
    axes = figure.subplots()
    axes.axhline(0, color="#999999", linewidth=1)
    for strategy, points in lines.items():
        _line(axes, points, look[strategy], strategy)
    axes.set(ylim=(-1.05, 1.05), xlabel="round", ylabel="correlation")
    axes.legend(fontsize=8.5)
    _whole_numbers(axes)
    return figure


@_drawn
def seconds(runs: Sequence[Run]) -> Figure | None:
    """Seconds of a whole run by phase, mean over seeds."""
    groups, _ = _shown(runs)
    figure = Figure(figsize=(HALF_WIDTH, max(2.2, 1.4 + 0.34 * len(groups))))
    axes = figure.subplots()
    left = np.zeros(len(groups))
    for part, colour in PHASE_COLOURS.items():
        width = np.array([np.mean([run.seconds[part] for run in members]) for members in groups.values()])
        axes.barh(list(groups), width, left=left, color=colour, label=part, height=0.6)
        left = left + width
    if not left.any():
        return None
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds a run")
    figure.legend(loc="outside upper left", ncols=4, fontsize=8.5)
    return figure
