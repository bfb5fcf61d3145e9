"""Progress on a terminal, in a file and nowhere, and the closing table."""

import io
import re
import statistics
import threading
import time
from datetime import datetime, timedelta

import pytest
from rich.console import Console

from star_jax.tracking import console
from star_jax.tracking.bars import duration, rate, round_title
from star_jax.tracking.console import Progress, mean_sd, print_tables
from star_jax.tracking.timing import PHASES, Forecast


class Clock:
    def __init__(self):
        self.now = self.compiled = 0.0
        self.compiling = False

    def __call__(self):
        return self.now


def make(mode, **options):
    stream, clock = io.StringIO(), Clock()
    screen = Console(file=stream, **{"width": 100, **options})
    shown = Progress(
        mode,
        console=screen,
        interval=10,
        clock=clock,
        compiled=lambda: clock.compiled,
        compiling=lambda: clock.compiling,
        stamp=lambda: "",
    )
    return shown, stream, clock


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


def drawn_lines(shown, stream):
    """The bars as they stand, a text each, whatever the thread that draws them ten times a second is about to do."""
    with shown._bars.live._lock:
        stream.truncate(stream.seek(0))
        shown._bars.refresh()
        drawn = stream.getvalue()
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).splitlines() if line]


NAMES = ("star seed 0, round 3/5", "a_strategy_of_somebody_with_a_long_name seed 12345, round 100/199")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 80, 99, 100, 140])
def test_bars_have_a_line_each_and_all_figures_at_any_width(name, width):
    shown, stream, clock = make("bars", force_terminal=True, width=width)
    forecast = Forecast({"star": [10_000] * 200}, ["star"] * 10)
    with shown.whole("all runs", forecast):
        clock.now += 50_000
        forecast.add("star", {"round": 0, "labelled": 10_000, "train_seconds": 37_000.0})
        shown.round_finished(forecast)
        with shown.task(f"{name}: base model on the test set", total=1_234_567, unit="examples") as tick:
            clock.now += 100
            tick(123_456)
            whole, task = drawn_lines(shown, stream)
            assert all(len(line) <= width for line in (whole, task))
            assert whole.startswith(name[:8])
            assert "1/2,000 rounds" in whole
            assert whole.endswith(f"{duration(1999 * 37_000 - 100)} left")
            assert task.startswith("base mod")
            assert f"123,456/1,234,567{' examples' if width >= 100 else ''} 1,234.6/s, 15 min 00 s left" in task


def test_a_bar_says_that_a_program_is_being_compiled():
    shown, stream, clock = make("bars", force_terminal=True, width=80)
    with shown.task("train", total=10, unit="examples") as tick:
        clock.compiling = True
        assert drawn_lines(shown, stream)[0].endswith("0/10 compiling")
        clock.compiling, clock.now = False, 1.0
        tick(5)
        assert drawn_lines(shown, stream)[0].endswith("5/10 5.0/s, 1.0 s left")


def test_a_line_says_once_that_a_program_takes_long_to_compile(monkeypatch):
    monkeypatch.setattr(console, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(console, "LONG_COMPILING", 0.002)
    shown, stream, clock = make("lines")
    clock.compiling = True
    with shown.task("train", total=1, unit="steps") as tick:
        while "compiling" not in stream.getvalue():
            time.sleep(0.001)
        time.sleep(0.02)
        tick(1)
    assert stream.getvalue().splitlines()[0] == "train: compiling"
    assert stream.getvalue().count("compiling") == 1
    with shown.task("quick", total=1, unit="steps") as tick:
        tick(1)  # ends before it is looked at
    assert not [thread for thread in threading.enumerate() if thread.name == "star_jax-compiling"]


def test_a_round_that_takes_longer_than_forecast_leaves_those_behind_it():
    shown, stream, clock = make("bars", force_terminal=True, width=80)
    forecast = Forecast({"star": [10, 10, 10]}, ["star"])
    with shown.whole("all runs", forecast):
        assert drawn_lines(shown, stream)[0].endswith("0/3 rounds")
        forecast.add("star", {"round": 0, "labelled": 10, "train_seconds": 30.0})
        shown.round_finished(forecast)
        for now, left in ((0, "1 min 00 s"), (20, "40.0 s"), (300, "30.0 s")):
            clock.now = now
            assert drawn_lines(shown, stream)[0].endswith(f"1/3 rounds {left} left")


def test_lines_say_how_far_the_experiment_is_after_each_round():
    shown, stream, _ = make("lines")
    forecast = Forecast({"star": [10, 20]}, ["star"])
    with shown.whole("all runs", forecast):
        for number, labelled in enumerate((10, 20)):
            forecast.add("star", {"round": number, "labelled": labelled, "train_seconds": 0.5 * labelled})
            shown.round_finished(forecast)
    assert stream.getvalue().splitlines() == [
        "1 of 2 rounds done, about 10.0 s left",
        "2 of 2 rounds done",
    ]


def test_rounds_are_counted_as_their_folders_are():
    assert [round_title(number, 3) for number in range(3)] == ["round 0/2", "round 1/2", "round 2/2"]


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
    assert captured.out == ""
    stamp, _, said = captured.err.partition(" hello")
    assert abs(datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S") - datetime.now()) < timedelta(seconds=60)
    assert said == "\n"


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


@pytest.mark.parametrize("total", [38.3, 9_876.5])
def test_the_times_of_a_run_are_whole_at_80_columns(total):
    """Nine columns of figures of a run of some hours, under headings that can be read."""
    spent = {"total": total} | dict.fromkeys(PHASES, total / 10)
    screen = Console(file=io.StringIO(), width=80)
    screen.print(console.times_table([{"strategy": "random", "seed": 12, "seconds": spent}]))
    lines = screen.file.getvalue().splitlines()
    assert "…" not in screen.file.getvalue()
    assert next(line.split() for line in lines if line.strip()) == ["seconds", "total", *PHASES]
    assert max(len(line.rstrip()) for line in lines) <= 80
