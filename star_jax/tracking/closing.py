"""The closing tables: results and seconds of all runs. They go to stdout, so that a script can read them alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from star_jax.evaluation.statistics import mean_and_sd, paired_difference
from star_jax.tracking.timing import PHASES

BASELINE = "random"
"""The strategy that the others are compared with."""

LINE_WIDTH = 1000
"""Columns allowed where the output is no terminal: more than any line has, so that nothing is cut or wrapped."""


def mean_sd(values: Sequence[float | None], digits: int = 3, missing: str = "-", between: str = " ± ") -> str:
    """Mean and, of two values or more, sample standard deviation: `0.812 ± 0.011`.

    Args:
      values: one a seed; None where a value does not exist, which is left out.
      digits: decimals of both figures.
      missing: text where no value is left.
      between: what stands between the two figures.
    """
    present = [value for value in values if value is not None]
    if not present:
        return missing
    mean, sd = mean_and_sd(present)
    return f"{mean:.{digits}f}" if sd is None else f"{mean:.{digits}f}{between}{sd:.{digits}f}"


def results_table(rows: Sequence[Mapping[str, Any]], between: str = " ± ") -> Table:
    """The closing table, a row a strategy with mean and standard deviation over its seeds.

    Args:
      rows: one a run, as summary.json has them: strategy, seed, labelled, accuracy, ece, aubc; and skipped and
        label_cost, which have a column where there is one.
      between: what stands between mean and standard deviation.
    """
    table = Table(box=box.SIMPLE)
    table.add_column("strategy", no_wrap=True)
    skips, costs = (any(row.get(name) for row in rows) for name in ("skipped", "label_cost"))
    more = ("skipped",) * skips + ("cost",) * costs
    for name in ("seeds", "labels", *more, "accuracy", "ECE", "AUBC"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        runs = [row for row in rows if row["strategy"] == strategy]
        counts = [[row["labelled"] for row in runs], *([[row.get("skipped", 0) for row in runs]] if skips else [])]
        table.add_row(
            Text(strategy),
            str(len(runs)),
            *(f"{min(values):,}" if len({*values}) == 1 else f"{min(values):,}-{max(values):,}" for values in counts),
            *([mean_sd([row.get("label_cost") for row in runs], between=between)] if costs else []),
            *(mean_sd([row[key] for row in runs], between=between) for key in ("accuracy", "ece", "aubc")),
        )
    return table


def paired_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The AUBC of each strategy less that of random, seed by seed; None where no two seeds have both.

    Args:
      rows: one a run, as summary.json has them. Areas over different budgets are not compared.
    """
    areas: dict[str, dict[tuple[Any, Any], float]] = {}
    for row in rows:
        if row.get("aubc") is not None:
            areas.setdefault(row["strategy"], {})[row["seed"], row["labelled"]] = row["aubc"]
    baseline = areas.pop(BASELINE, {})
    table = Table(box=box.SIMPLE)
    table.add_column(f"AUBC less that of {BASELINE}", no_wrap=True)
    for name in ("seeds", "difference", "95 % interval", "larger on"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy, own in areas.items():
        pairs = [(area, baseline[run]) for run, area in own.items() if run in baseline]
        if len(pairs) < 2:
            continue
        found = paired_difference(*zip(*pairs, strict=True))
        assert found.interval is not None
        low, high = found.interval
        wins = f"{sum(ours > theirs for ours, theirs in pairs)} of {found.n}"
        table.add_row(Text(strategy), str(found.n), f"{found.mean:+.3f}", f"{low:+.3f} to {high:+.3f}", wins)
    return table if table.rows else None


def times_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The closing table of seconds: a row a run, what it took in all and where it went.

    Args:
      rows: one a run, as summary.json has them: strategy, seed, seconds. Runs without seconds are left out.
    """
    # Close together, so that the nine columns of a run of some hours fit into 80.
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("seconds", no_wrap=True)
    for name in ("total", *PHASES):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if "seconds" in row:
            spent = row["seconds"]
            figures = [f"{spent[name]:,.1f}" for name in ("total", *PHASES)]
            table.add_row(Text(f"{row['strategy']} seed {row['seed']}"), *figures)
    return table


def print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints `results_table`, `paired_table` and `times_table` to stdout."""
    console, between = stdout_console()
    console.print(results_table(rows, between))
    if (paired := paired_table(rows)) is not None:
        console.print(paired)
    if any("seconds" in row for row in rows):
        console.print(times_table(rows))


def stdout_console() -> tuple[Console, str]:
    """Where tables are printed, uncut where stdout is not a terminal, and the plus-minus sign that it can show."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else LINE_WIDTH, highlight=False)
    return console, " ± " if console.encoding.startswith("utf") else " +/- "
