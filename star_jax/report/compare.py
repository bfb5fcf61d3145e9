"""Several experiments side by side: one row for each strategy of each output folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from star_jax.evaluation.curves import aubc_of_rounds
from star_jax.report.read import Run, read_runs
from star_jax.tracking.closing import mean_sd, stdout_console


def print_comparison(folders: Sequence[str | Path]) -> None:
    """Prints the table to stdout, uncut where stdout is no terminal."""
    console, between = stdout_console()
    console.print(comparison_table(folders, between))


def comparison_table(folders: Sequence[str | Path], between: str = " ± ") -> Table:
    """Mean and standard deviation over seeds of each strategy, experiment after experiment.

    Runs that are not finished count as far as they have come; how far is in the column of labels.

    Args:
      folders: output folders of experiments.
      between: what stands between mean and standard deviation.

    Raises:
      ConfigError: a folder holds no run.
      DataError: a run cannot be read.
    """
    table = Table(box=box.SIMPLE)
    for name in ("experiment", "strategy"):
        table.add_column(name, no_wrap=True)
    for name in ("seeds", "rounds", "labels", "accuracy", "ECE", "AUBC"):
        table.add_column(name, justify="right", no_wrap=True)
    for folder in folders:
        runs = [run for run in read_runs(Path(folder)) if run.rows]  # one that has just begun has nothing to show
        for strategy in dict.fromkeys(run.strategy for run in runs):
            table.add_row(Text(str(folder)), *_row([run for run in runs if run.strategy == strategy], between))
    return table


def _row(runs: Sequence[Run], between: str) -> list[str | Text]:
    rows = [run.rows for run in runs]
    last = [one[-1] for one in rows]
    areas = [aubc_of_rounds(one) for one in rows]
    figures: list[list[Any]] = [[row["accuracy"] for row in last], [row["ece"] for row in last], areas]
    return [
        Text(runs[0].strategy),
        str(len(runs)),
        _span([len(one) for one in rows]),
        _span([row["labelled"] for row in last]),
        *(mean_sd(values, between=between) for values in figures),
    ]


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
