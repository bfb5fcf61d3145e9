"""The report's tables of figures as rows of texts: the headline, paired differences, accuracy by group, and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from star_jax.evaluation.curves import ripl
from star_jax.report.drawing import PHASE_COLOURS, SIGNS
from star_jax.report.figures import shown_looks
from star_jax.report.findings import signed
from star_jax.report.read import Comparison, Run, by_strategy, compare, mean_of_groups, settled
from star_jax.tracking.bars import duration
from star_jax.tracking.closing import mean_sd

MISSING = "\N{EN DASH}"

METRICS = ("ece", "brier", "nll", "auroc")
"""Metrics of the last round that the headline table shows after accuracy and the areas."""


@dataclass(frozen=True)
class HeadlineRow:
    """One strategy in the headline table; all texts are ready to show."""

    strategy: str
    colour: str
    sign: str
    seeds: str
    labels: str
    cells: list[str]
    finished: bool


def headline(runs: Sequence[Run]) -> list[HeadlineRow]:
    """A row a strategy: the last round's metrics, AUBC and RIPL, mean and standard deviation over seeds."""
    groups = by_strategy(runs)
    look = shown_looks(runs)
    comparisons = {comparison.strategy: comparison.areas for comparison in compare(runs)}
    rows = []
    for strategy, members in groups.items():
        shown = settled(members)
        labels = sorted({run.last("labelled") for run in shown})
        gains = [ripl(ours, theirs) for ours, theirs in comparisons.get(strategy, [])]
        last = [[run.last(name) for run in shown] for name in METRICS]
        columns = [[run.last("accuracy") for run in shown], [run.area for run in shown], gains, *last]
        rows.append(
            HeadlineRow(
                strategy=strategy,
                colour=look[strategy].colour,
                sign=SIGNS[look[strategy].marker],
                seeds=_seeds(members),
                labels=MISSING.join(f"{count:,}" for count in dict.fromkeys([*labels[:1], *labels[-1:]])) or MISSING,
                cells=[signed(mean_sd(values, missing=MISSING)) for values in columns],
                finished=any(run.finished for run in members),
            )
        )
    return rows


def paired_row(comparison: Comparison) -> list[str]:
    """A strategy against random in the table of differences: the texts of its cells."""

    def p_value(value: float | None) -> str:
        return MISSING if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"

    difference = comparison.difference
    mean = f"{difference.mean:+.3f}" if difference.sd is None else f"{difference.mean:+.3f} ± {difference.sd:.3f}"
    interval = difference.interval
    return [
        comparison.strategy,
        str(difference.n),
        signed(mean),
        MISSING if interval is None else signed(f"{interval[0]:+.3f} to {interval[1]:+.3f}"),
        comparison.wins,
        p_value(difference.t_p_value),
        p_value(difference.wilcoxon_p_value),
    ]


def _seeds(runs: Sequence[Run]) -> str:
    finished = sum(run.finished for run in runs)
    return str(len(runs)) if finished == len(runs) else f"{finished} of {len(runs)}"


@dataclass(frozen=True)
class GroupRow:
    """A kind of example: its name, and strategy, colour, sign and accuracy of each dot."""

    name: str
    dots: list[tuple[str, str, str, float]]


def group_rows(runs: Sequence[Run]) -> list[GroupRow]:
    """Accuracy by group after the last round, mean over seeds, hardest first; none where there is one group only."""
    look = shown_looks(runs)
    values = {
        strategy: mean_of_groups([run.last("group_accuracy") for run in settled(members)])
        for strategy, members in by_strategy(runs).items()
    }
    rows = [
        GroupRow(
            name,
            [
                (strategy, look[strategy].colour, SIGNS[look[strategy].marker], item[name])
                for strategy, item in values.items()
                if name in item
            ],
        )
        for name in dict.fromkeys(name for item in values.values() for name in item)
    ]
    rows.sort(key=lambda row: (sum(dot[3] for dot in row.dots) / len(row.dots), row.name))
    return rows if len(rows) > 1 else []


@dataclass(frozen=True)
class TimeRow:
    """Where a strategy's time went, mean over its runs: seconds in words, and phase, colour and share of each part."""

    strategy: str
    total: str
    parts: list[tuple[str, str, float]]


def time_rows(runs: Sequence[Run]) -> list[TimeRow]:
    """A row a strategy; shares are of the strategy that took longest, in percent."""
    spent = {
        strategy: {phase: sum(run.seconds[phase] for run in members) / len(members) for phase in PHASE_COLOURS}
        for strategy, members in ((name, settled(one)) for name, one in by_strategy(runs).items())
        if members
    }
    longest = max((sum(parts.values()) for parts in spent.values()), default=0.0)
    if not longest:
        return []
    return [
        TimeRow(
            strategy,
            duration(sum(parts.values())),
            [(phase, PHASE_COLOURS[phase], 100 * seconds / longest) for phase, seconds in parts.items() if seconds],
        )
        for strategy, parts in spent.items()
    ]
