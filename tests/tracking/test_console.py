"""Progress on a terminal, in a file and nowhere, and the closing table."""

import io
import re
import statistics

import pytest
from rich.console import Console

from star_jax.tracking.console import Progress, duration, mean_sd, print_tables, rate
from star_jax.tracking.timing import PHASES


class Clock:
    def __init__(self):
        self.now = self.compiled = 0.0

    def __call__(self):
        return self.now


def make(mode, **options):
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, width=100, **options)
    return Progress(mode, console=console, interval=10, clock=clock, compiled=lambda: clock.compiled), stream, clock


def test_lines_come_at_most_every_interval_and_at_the_end():
    shown, stream, clock = make("lines")
    with shown.task("score pool", total=1500, unit="examples") as tick:
        for _ in range(15):
            clock.now += 4
            tick(100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "score pool: 300 of 1,500 examples, 25.0 examples/s, 48.0 s left"
    assert len(lines) == 1 + 4
    assert lines[-1] == "score pool: 1,500 examples in 1 min 00 s, 25.0 examples/s"


def test_a_short_task_is_one_line_and_a_long_line_is_not_cut():
    shown, stream, clock = make("lines")
    with shown.task("train", unit="steps") as tick:
        clock.now += 2
        tick(7)
    shown.log("[bold] is not markup: " + "x" * 200)
    assert stream.getvalue() == "train: 7 steps in 2.0 s, 3.5 steps/s\n[bold] is not markup: " + "x" * 200 + "\n"


@pytest.mark.parametrize("mode", ["lines", "bars"])
def test_compilation_is_no_part_of_the_rate(mode):
    """30 s of compilation at the beginning and 20 s in the middle; the work itself is 10 examples a second."""
    shown, stream, clock = make(mode, force_terminal=mode == "bars")
    with shown.task("score", total=1000, unit="examples") as tick:
        for compiled in (30, 0, 20, 0):
            clock.now += compiled + 10
            clock.compiled += compiled
            tick(100)
            if mode == "bars":
                shown.log("draws")
        if mode == "bars":
            shown._bars.refresh()
        clock.now += 60
        tick(600)
    lines = stream.getvalue()
    for said in ("10.0 examples/s, 1 min 30 s left", "10.0 examples/s, 1 min 00 s left"):
        assert (said if mode == "lines" else "10.0/s, 1 min 00 s left") in lines
    if mode == "lines":
        end = "score: 1,000 examples in 2 min 30 s (50.0 s of them compiling), 10.0 examples/s"
        assert lines.splitlines()[-1] == end


def test_an_unknown_total_and_no_time_at_all():
    shown, stream, clock = make("lines")
    with shown.task("read", unit="rows") as tick:
        clock.now += 10
        tick(5)
    assert stream.getvalue().splitlines() == ["read: 5 rows, 0.5 rows/s", "read: 5 rows in 10.0 s, 0.5 rows/s"]
    with shown.task("nothing", total=0, unit="rows"):
        pass
    assert stream.getvalue().splitlines()[-1] == "nothing: 0 rows in 0.0 s, - rows/s"


@pytest.mark.parametrize("mode", ["lines", "bars", "silent"])
def test_an_error_passes_through(mode):
    shown, stream, _ = make(mode, force_terminal=mode == "bars")

    def fail():
        with shown.task("train", total=10) as tick:
            tick(3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    if mode == "lines":
        assert stream.getvalue() == "train: stopped after 3 steps, 0.0 s\n"
    with shown.task("again", total=1) as tick:
        tick(1)


def test_bars_show_count_rate_and_vanish():
    shown, stream, _ = make("bars", force_terminal=True)
    with shown.task("rounds", total=8, unit="rounds") as tick:
        tick(2)
        with shown.task("[score]", total=1500, unit="examples") as inner:
            inner(750)
            shown.log("a line above the bars")
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "a line above the bars" in drawn
    assert "2/8 rounds" in drawn
    assert "[score]" in drawn
    # The cursor is hidden once and shown once: one live display, however deep the tasks nest.
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_silence():
    shown, stream, _ = make("silent")
    with shown.task("score", total=3) as tick:
        tick(3)
    shown.log("hidden")
    assert stream.getvalue() == ""


def test_without_a_terminal_auto_means_lines_on_stderr(capsys):
    shown = Progress()
    assert shown.mode == "lines"
    shown.log("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_durations_and_rates():
    spans = [0, 8.26, 59.94, 59.96, 125, 3599, 3599.9, 4800]
    said = ["0.0 s", "8.3 s", "59.9 s", "1 min 00 s", "2 min 05 s", "59 min 59 s", "1 h 00 min", "1 h 20 min"]
    assert [duration(seconds) for seconds in spans] == said
    assert rate(3000, 2.0) == "1,500.0"


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
