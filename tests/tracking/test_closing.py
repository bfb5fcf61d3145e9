"""The closing tables: what stands in them, and that nothing is cut."""

import io
import re
import statistics

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from star_jax.tracking.closing import mean_sd, print_tables, times_table
from star_jax.tracking.timing import PHASES


def test_mean_and_sample_standard_deviation():
    values = [0.81, 0.84, 0.90]
    assert mean_sd(values) == f"{sum(values) / 3:.3f} ± {statistics.stdev(values):.3f}"
    assert mean_sd([0.5, None]) == "0.500"
    assert mean_sd([None], missing="none") == "none"
    assert mean_sd([1, 3], digits=1, between=" +/- ") == "2.0 +/- 1.4"


def test_the_closing_tables_have_uncut_rows_a_strategy_and_a_run(capsys):
    spent = dict(zip(("total", *PHASES), (1234.56, 100.0, 20.0, 600.0, 400.0, 100.0, 10.06, 4.5), strict=True))
    name = "a_strategy_with_a_name_that_would_not_fit_in_a_column_of_an_eighty_column_terminal"
    run = {"labelled": 4600, "accuracy": 0.8, "ece": 0.1, "aubc": 0.7}
    rows = [
        {**run, "strategy": "star", "seed": 0, "seconds": spent},
        {**run, "strategy": name, "seed": 0, "aubc": None},
        {**run, "strategy": "star", "seed": 1, "accuracy": 0.9},
        {**run, "strategy": "[x]", "seed": 1, "labelled": 20},
        {**run, "strategy": "[x]", "seed": 1},
    ]
    print_tables(rows)
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["strategy", "seeds", "labels", "accuracy", "ECE", "AUBC"]
    assert lines[2] == ["star", "2", "4,600", "0.850 ± 0.071", "0.100 ± 0.000", "0.700 ± 0.000"]
    assert lines[3] == [name, "1", "4,600", "0.800", "0.100", "-"]
    assert lines[4][:3] == ["[x]", "2", "20-4,600"]
    assert lines[5] == ["seconds", "total", *PHASES]
    assert lines[7] == ["star seed 0", "1,234.6", "100.0", "20.0", "600.0", "400.0", "100.0", "10.1", "4.5"]
    assert len(lines) == 8
    print_tables(rows[1:])
    assert "seconds" not in capsys.readouterr().out


def test_strategies_are_compared_with_random_seed_by_seed(capsys):
    """The interval is scipy's own; a run of another budget, and one without a partner, are left out."""
    star, other = [0.60, 0.62, 0.59, 0.7], [0.55, 0.54, 0.58, 0.1]
    run = {"accuracy": 0.8, "ece": 0.1}
    rows = [
        {**run, "strategy": name, "seed": seed, "labelled": 500 if (name, seed) == ("random", 3) else 460, "aubc": area}
        for name, areas in (("star", star), ("random", other), ("entropy", star[:1]))
        for seed, area in enumerate(areas)
    ]
    print_tables(rows)
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    at = lines.index(["AUBC less that of random", "seeds", "difference", "95 % interval", "larger on"])
    differences = np.subtract(star[:3], other[:3])
    low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert lines[at + 2 :] == [["star", "3", f"{differences.mean():+.3f}", f"{low:+.3f} to {high:+.3f}", "3 of 3"]]
    print_tables(rows[3:6])
    assert "less that of" not in capsys.readouterr().out


def test_what_was_skipped_has_a_column_where_there_is_some(capsys):
    row = {"strategy": "star", "seed": 0, "labelled": 20, "accuracy": 0.5, "ece": 0.1, "aubc": 0.4}
    print_tables([row, row | {"seed": 1, "skipped": 3}])
    header, *_, line = [text.split() for text in capsys.readouterr().out.splitlines() if text.strip()]
    assert dict(zip(header[:4], line[:4], strict=True)) == {
        "strategy": "star",
        "seeds": "2",
        "labels": "20",
        "skipped": "0-3",
    }
    print_tables([row])
    assert "skipped" not in capsys.readouterr().out


def test_what_labels_cost_has_a_column_where_somebody_says(capsys):
    row = {"strategy": "star", "seed": 0, "labelled": 20, "accuracy": 0.5, "ece": 0.1, "aubc": 0.4}
    print_tables([row | {"label_cost": 1.25}])
    header, *_, line = [text.split() for text in capsys.readouterr().out.splitlines() if text.strip()]
    assert dict(zip(header, line, strict=True))["cost"] == "1.250"
    print_tables([row])
    assert "cost" not in capsys.readouterr().out


@pytest.mark.parametrize("total", [38.3, 9_876.5])
def test_the_times_of_a_run_are_whole_at_80_columns(total):
    """Nine columns of figures of a run of some hours, under headings that can be read."""
    spent = {"total": total} | dict.fromkeys(PHASES, total / 10)
    screen = Console(file=io.StringIO(), width=80)
    screen.print(times_table([{"strategy": "random", "seed": 12, "seconds": spent}]))
    lines = screen.file.getvalue().splitlines()
    assert "…" not in screen.file.getvalue()
    assert next(line.split() for line in lines if line.strip()) == ["seconds", "total", *PHASES]
    assert max(len(line.rstrip()) for line in lines) <= 80
