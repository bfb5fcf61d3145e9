"""What a person sees while a run works: bars on a terminal, plain lines elsewhere, and the closing table.

Progress goes to stderr, the closing table to stdout, so that a script can read the one without the other.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from rich import box, progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from star_jax.evaluation.statistics import mean_and_sd
from star_jax.tracking.timing import PHASES, compile_seconds

Mode = Literal["auto", "bars", "lines", "silent"]
Tick = Callable[[int], None]

SHOWN_COMPILING = 0.1
"""Seconds of compilation from which on the closing line of a task names them."""

LINE_WIDTH = 1000
"""Columns allowed where the output is no terminal: more than any line has, so that nothing is cut or wrapped."""


class Progress:
    """Shows how far the tasks of a run are.

    Args:
      mode: `bars` draws them, `lines` prints at most one line every `interval` seconds and a closing one a task,
        `silent` shows nothing, and `auto` draws bars when stderr is a terminal and prints lines otherwise.
      console: where to draw or print; stderr when None.
      interval: seconds between two lines of a task.
      clock: seconds, never running backwards.
      compiled: seconds of them that were spent compiling. Rates, and with them the time left, are taken over the
        others: a program is compiled once, when its first batch comes, and says nothing of how quick it is.

    Example:
      >>> shown = Progress(mode="silent")
      >>> with shown.task("score pool", total=1500, unit="examples") as tick:
      ...     tick(16)
    """

    def __init__(
        self,
        mode: Mode = "auto",
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        compiled: Callable[[], float] = compile_seconds,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        if mode == "auto":
            mode = "bars" if self._console.file.isatty() and not self._console.is_dumb_terminal else "lines"
        self.mode = mode
        self._interval = interval
        self._clock = clock
        self._compiled = compiled
        self._bars: progress.Progress | None = None

    def log(self, text: str) -> None:
        """Prints one line, above the bars where there are any."""
        if self.mode != "silent":
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "steps") -> Iterator[Tick]:
        """Opens a task and gives the function that says how many more units are done; tasks may nest.

        Args:
          name: what is being done.
          total: units to do, None where that is not known.
          unit: what is counted, in the plural.
        """
        if self.mode == "bars":
            with self._bar(name, total, unit) as tick:
                yield tick
        elif self.mode == "lines":
            with self._lines(name, total, unit) as tick:
                yield tick
        else:
            yield lambda count: None

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Tick]:
        outermost = self._bars is None
        bars = self._bars or progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            _CountColumn(Column(no_wrap=True)),
            _RateColumn(Column(no_wrap=True)),
            progress.TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        if outermost:
            self._bars = bars
            bars.start()
        pace = _Pace(total, self._clock, self._compiled)
        task = bars.add_task(name, total=total, unit=unit, pace=pace)

        def tick(count: int) -> None:
            pace.add(count)
            bars.advance(task, count)

        try:
            yield tick
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    @contextmanager
    def _lines(self, name: str, total: int | None, unit: str) -> Iterator[Tick]:
        pace = _Pace(total, self._clock, self._compiled)
        last = self._clock()

        def tick(count: int) -> None:
            nonlocal last
            pace.add(count)
            if self._clock() - last >= self._interval and pace.done != total:
                last = self._clock()
                of = "" if total is None else f" of {total:,}"
                left = "" if pace.left is None else f", {duration(pace.left)} left"
                self.log(f"{name}: {pace.done:,}{of} {unit}, {pace.rate} {unit}/s{left}")

        try:
            yield tick
        except BaseException:
            self.log(f"{name}: stopped after {pace.done:,} {unit}, {duration(pace.elapsed)}")
            raise
        compiling = f" ({duration(pace.compiling)} of them compiling)" if pace.compiling >= SHOWN_COMPILING else ""
        self.log(f"{name}: {pace.done:,} {unit} in {duration(pace.elapsed)}{compiling}, {pace.rate} {unit}/s")


class _Pace:
    """How quick a task is: units done, and the seconds since it began, those spent compiling apart."""

    def __init__(self, total: int | None, clock: Callable[[], float], compiled: Callable[[], float]) -> None:
        self.done = 0
        self._total, self._clock, self._compiled = total, clock, compiled
        self._began, self._compiled_before = clock(), compiled()
        self._worked = 0.0

    def add(self, count: int) -> None:
        self.done += count
        self._worked = self.elapsed - self.compiling

    @property
    def elapsed(self) -> float:
        return self._clock() - self._began

    @property
    def compiling(self) -> float:
        return self._compiled() - self._compiled_before

    @property
    def rate(self) -> str:
        """Units a second up to the last tick."""
        return rate(self.done, self._worked)

    @property
    def left(self) -> float | None:
        """Seconds left at that rate; None before the first tick and where the total is not known."""
        return self._worked / self.done * (self._total - self.done) if self._total and self.done else None


class _CountColumn(progress.ProgressColumn):
    """Units done, of the total where it is known."""

    def render(self, task: progress.Task) -> Text:
        """Text of one bar."""
        of = "" if task.total is None else f"/{int(task.total):,}"
        return Text(f"{int(task.completed):,}{of} {task.fields['unit']}", style="progress.download")


class _RateColumn(progress.ProgressColumn):
    """Units a second and time left, as the lines have them; nothing before the first tick."""

    def render(self, task: progress.Task) -> Text:
        """Text of one bar."""
        pace: _Pace = task.fields["pace"]
        if not pace.done:
            return Text("")
        left = "" if pace.left is None else f", {duration(pace.left)} left"
        return Text(f"{pace.rate}/s{left}", style="progress.data.speed")


def rate(count: int, seconds: float) -> str:
    """Units a second with one decimal; `-` where no time has passed."""
    return f"{count / seconds:,.1f}" if seconds > 0 else "-"


def duration(seconds: float) -> str:
    """Seconds in the units a person would say: `8.3 s`, `2 min 05 s`, `1 h 20 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


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
      rows: one a run, as summary.json has them: strategy, seed, labelled, accuracy, ece, aubc; and skipped, which has
        a column where there is one.
      between: what stands between mean and standard deviation.
    """
    table = Table(box=box.SIMPLE)
    table.add_column("strategy", no_wrap=True)
    skips = any(row.get("skipped") for row in rows)
    for name in ("seeds", "labels", *(("skipped",) if skips else ()), "accuracy", "ECE", "AUBC"):
        table.add_column(name, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        runs = [row for row in rows if row["strategy"] == strategy]
        counts = [[row["labelled"] for row in runs], *([[row.get("skipped", 0) for row in runs]] if skips else [])]
        table.add_row(
            Text(strategy),
            str(len(runs)),
            *(f"{min(values):,}" if len({*values}) == 1 else f"{min(values):,}-{max(values):,}" for values in counts),
            *(mean_sd([row[key] for row in runs], between=between) for key in ("accuracy", "ece", "aubc")),
        )
    return table


def times_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The closing table of seconds: a row a run, what it took in all and where it went.

    Args:
      rows: one a run, as summary.json has them: strategy, seed, seconds. Runs without seconds are left out.
    """
    table = Table(box=box.SIMPLE)
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
    """Prints `results_table` and `times_table` to stdout, uncut where stdout is not a terminal."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else LINE_WIDTH, highlight=False)
    console.print(results_table(rows, " ± " if console.encoding.startswith("utf") else " +/- "))
    if any("seconds" in row for row in rows):
        console.print(times_table(rows))
