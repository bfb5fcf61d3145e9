"""What a person sees while a run works: bars on a terminal, plain lines elsewhere. Both go to stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import Literal, NamedTuple

from rich import progress
from rich.console import Console
from rich.table import Column

from star_jax.tracking.bars import BAR_WIDTH, CountColumn, NameColumn, Pace, RateColumn, Remaining
from star_jax.tracking.bars import duration as duration
from star_jax.tracking.bars import rate as rate
from star_jax.tracking.bars import round_title as round_title
from star_jax.tracking.interruption import stop_if_asked
from star_jax.tracking.timing import Forecast, compile_seconds, compiling_now

Mode = Literal["auto", "bars", "lines", "silent"]
Tick = Callable[[int], None]

SHOWN_COMPILING = 0.1
"""Seconds of compilation from which on the closing line of a task names them."""

LONG_COMPILING, WATCH_SECONDS = 3.0, 0.5
"""Seconds of compiling one program after which lines say so, and between two looks at whether it still goes on."""

STAMP = "%Y-%m-%d %H:%M:%S"


def time_stamp() -> str:
    """Date and time of day, which log lines begin with."""
    return datetime.now().strftime(f"{STAMP} ")


class Clocks(NamedTuple):
    """What time it is, and what it is spent on.

    Attributes:
      now: seconds, never running backwards.
      compiled: seconds of them that were spent compiling. Rates, and with them the time left, are taken over the
        others: a program is compiled once, when its first batch comes, and says nothing of how quick it is.
      compiling: whether a program is being compiled right now.
      stamp: what lines begin with, the time; bars have no need of it.
    """

    now: Callable[[], float] = time.monotonic
    compiled: Callable[[], float] = compile_seconds
    compiling: Callable[[], bool] = compiling_now
    stamp: Callable[[], str] = time_stamp


class Progress:
    """Shows how far the tasks of a run are.

    Args:
      mode: `bars` draws them, `lines` prints at most one line every `interval` seconds and a closing one a task,
        `silent` shows nothing, and `auto` draws bars when stderr is a terminal and prints lines otherwise.
      console: where to draw or print; stderr when None.
      interval: seconds between two lines of a task.
      clocks: that tell the time; those of this process when None.

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
        clocks: Clocks | None = None,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        if mode == "auto":
            mode = "bars" if self._console.file.isatty() and not self._console.is_dumb_terminal else "lines"
        self.mode = mode
        self._interval = interval
        self._clock, self._compiled, self._compiling, stamp = clocks or Clocks()
        self._stamp = stamp if mode == "lines" else lambda: ""
        self._bars: progress.Progress | None = None
        self._whole: _Whole | None = None

    def log(self, text: str) -> None:
        """Prints one line, above the bars where there are any."""
        if self.mode != "silent":
            self._console.print(f"{self._stamp()}{text}", markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "steps") -> Iterator[Tick]:
        """Opens a task and gives the function that says how many more units are done; tasks may nest.

        That function is also where a run stops after Ctrl-C, if nothing has stopped it before.

        Args:
          name: what is being done. What stands before its last `: ` says for whom; where the whole experiment has a
            bar, it is shown there.
          total: units to do, None where that is not known.
          unit: what is counted, in the plural.
        """
        stop_if_asked()
        if self.mode == "bars":
            if self._whole is not None and self._bars is not None:
                owner, _, name = name.rpartition(": ")
                self._bars.update(self._whole.bar, description=owner or self._whole.name)
            pace = Pace(total, self._clock, self._compiled)
            shown: AbstractContextManager[Tick] = self._bar(name, total, unit, pace)
        elif self.mode == "lines":
            shown = self._lines(name, total, unit)
        else:
            shown = nullcontext(lambda count: None)
        with shown as tick:

            def step(count: int) -> None:
                tick(count)
                stop_if_asked()

            yield step

    @contextmanager
    def whole(self, name: str, forecast: Forecast) -> Iterator[None]:
        """Shows how far all runs of an experiment are, above the task at hand.

        Args:
          name: shown while no task is at hand.
          forecast: of the experiment; `round_finished` says when it has changed.
        """
        if self.mode != "bars":
            yield
            return
        pace = Remaining(forecast, self._clock)
        with self._bar(name, forecast.rounds, "rounds", pace) as tick:
            assert self._bars is not None
            tick(forecast.done)
            self._whole = _Whole(self._bars.task_ids[-1], name, pace, tick)
            try:
                yield
            finally:
                self._whole = None

    def round_finished(self, forecast: Forecast) -> None:
        """Shows how far the experiment is, now that a round has been finished or found finished."""
        left = "" if not forecast.left else f", about {duration(forecast.left)} left"
        if self._whole is not None:
            self._whole.tick(forecast.done - self._whole.pace.done)
        elif forecast.done:
            self.log(f"{forecast.done:,} of {forecast.rounds:,} rounds done{left}")

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str, pace: Pace | Remaining) -> Iterator[Tick]:
        outermost = self._bars is None
        bars = self._bars or progress.Progress(
            NameColumn(self._console, Column(no_wrap=True)),
            progress.BarColumn(BAR_WIDTH),
            CountColumn(self._console, Column(no_wrap=True)),
            RateColumn(self._console, self._compiling, Column(no_wrap=True)),
            console=self._console,
            transient=True,
        )
        if outermost:
            self._bars = bars
            bars.start()
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
        pace = Pace(total, self._clock, self._compiled)
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
            with _said_compiling(lambda: self.log(f"{name}: compiling"), self._compiling):
                yield tick
        except BaseException:
            self.log(f"{name}: stopped after {pace.done:,} {unit}, {duration(pace.elapsed)}")
            raise
        compiling = f" ({duration(pace.compiling)} of them compiling)" if pace.compiling >= SHOWN_COMPILING else ""
        self.log(f"{name}: {pace.done:,} {unit} in {duration(pace.elapsed)}{compiling}, {pace.rate} {unit}/s")


@contextmanager
def _said_compiling(say: Callable[[], None], compiling: Callable[[], bool]) -> Iterator[None]:
    """Says once that a program is being compiled where that takes a while: nothing else moves in the meantime."""
    ended = threading.Event()

    def watch() -> None:
        busy = 0
        while not ended.wait(WATCH_SECONDS):
            busy = busy + 1 if compiling() else 0
            if busy * WATCH_SECONDS >= LONG_COMPILING:
                say()
                return

    watcher = threading.Thread(target=watch, name="star_jax-compiling", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class _Whole(NamedTuple):
    """The bar of the whole experiment: its number, its name between tasks, its pace, and what counts a round."""

    bar: progress.TaskID
    name: str
    pace: Remaining
    tick: Tick
