"""How quick a task is and how long it will take, and the columns of a bar that say so."""

from __future__ import annotations

from collections.abc import Callable

from rich import progress
from rich.console import Console
from rich.table import Column
from rich.text import Text

from star_jax.tracking.timing import Forecast

BAR_WIDTH = 10
WIDE = 100
BESIDES, BESIDES_WIDE = 50, 62
"""Columns of a bar; of a terminal from which on units are named beside counts; and of all that is not a task's name,
below that width and from it on."""


class Remaining:
    """The time left of a whole experiment: as it was forecast when the last round ended, less what has passed since."""

    def __init__(self, forecast: Forecast, clock: Callable[[], float]) -> None:
        self.done = 0
        self.rate = ""
        self._forecast, self._clock = forecast, clock
        self._at = clock()

    def add(self, count: int) -> None:
        """Rounds are done."""
        self.done += count
        self._at = self._clock()

    @property
    def left(self) -> float | None:
        """Seconds; None while nothing can be said."""
        left, later = self._forecast.left, self._forecast.left_after_next
        if left is None or later is None:
            return None
        # However long the round at hand takes, those behind it are still to come.
        return max(later, left - (self._clock() - self._at))


class Pace:
    """How quick a task is: units done, and the seconds since it began, those spent compiling apart."""

    def __init__(self, total: int | None, clock: Callable[[], float], compiled: Callable[[], float]) -> None:
        self.done = 0
        self._total, self._clock, self._compiled = total, clock, compiled
        self._began, self._compiled_before = clock(), compiled()
        self._worked = 0.0

    def add(self, count: int) -> None:
        """Units are done."""
        self.done += count
        self._worked = self.elapsed - self.compiling

    @property
    def elapsed(self) -> float:
        """Seconds since the task began."""
        return self._clock() - self._began

    @property
    def compiling(self) -> float:
        """Seconds of them that were spent compiling."""
        return self._compiled() - self._compiled_before

    @property
    def rate(self) -> str:
        """Units a second up to the last tick."""
        return rate(self.done, self._worked)

    @property
    def left(self) -> float | None:
        """Seconds left at that rate; None before the first tick and where the total is not known."""
        return self._worked / self.done * (self._total - self.done) if self._total and self.done else None


class NameColumn(progress.ProgressColumn):
    """What is being done; on a narrow terminal its end is left out, so that the figures beside it are not."""

    def __init__(self, console: Console, column: Column) -> None:
        super().__init__(column)
        self._console = console

    def render(self, task: progress.Task) -> Text:
        """Text of one bar."""
        room = max(8, self._console.width - (BESIDES if self._console.width < WIDE else BESIDES_WIDE))
        name = Text(task.description)
        name.truncate(room, overflow="ellipsis")
        return name


class CountColumn(progress.ProgressColumn):
    """Units done, of the total where it is known; of what, where there is room."""

    def __init__(self, console: Console, column: Column) -> None:
        super().__init__(column)
        self._console = console

    def render(self, task: progress.Task) -> Text:
        """Text of one bar."""
        of = "" if task.total is None else f"/{int(task.total):,}"
        whole = self._console.width >= WIDE or task.fields["unit"] == "rounds"
        return Text(f"{int(task.completed):,}{of}{' ' + task.fields['unit'] if whole else ''}", "progress.download")


class RateColumn(progress.ProgressColumn):
    """Units a second and time left, as the lines have them; or that nothing moves because a program is compiled."""

    def __init__(self, console: Console, compiling: Callable[[], bool], column: Column) -> None:
        super().__init__(column)
        self._console, self._compiling = console, compiling

    def render(self, task: progress.Task) -> Text:
        """Text of one bar."""
        pace: Pace | Remaining = task.fields["pace"]
        if isinstance(pace, Pace) and self._compiling():
            return Text("compiling", style="progress.data.speed")
        told = [f"{pace.rate}/s"] if pace.done and pace.rate else []
        told += [f"{duration(pace.left)} left"] if pace.left else []
        return Text(", ".join(told), style="progress.data.speed")


def round_title(number: int, rounds: int) -> str:
    """A round of a run, and the last one: `round 3/5` of six. They count from 0, as their folders and figures do."""
    return f"round {number}/{rounds - 1}"


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
