"""Where a run's wall time goes: seconds by phase, compilation apart from the phase that it happened in.

Belongs here: clocks, and adding up what they say. Nothing here imports JAX before a compilation has to be heard of.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

Seconds = dict[str, float]
"""Phase -> seconds."""

PHASES = ("compile", "load", "score", "train", "evaluate", "write", "other")
"""What a run's wall time is split into, without overlap.

`compile` is tracing, lowering and compiling, or fetching a compiled program from the cache, wherever it happens; no
other phase contains it. `load` is everything up to the first batch: imports, model, data, tokenising. `score` and
`evaluate` contain the base model's pass over the pool and over the test set. `write` is files and checkpoints.
"""

_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
"""Names of the events between which a program is being compiled: reported when the one has ended, and the other."""

_COMPILE_EVENTS = ("/jax/core/compile/", "/jax/compilation_cache/cache_retrieval_time_sec")
"""Beginnings of the names under which JAX reports how long tracing, lowering, compiling and fetching took."""


class CompileClock:
    """Seconds in which JAX was compiling.

    The events of one compilation lie inside each other: functions are traced while others are, and a program is fetched
    while one is compiled. So what counts is the time that at least one of them covers.

    Args:
      clock: seconds, never running backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spans: list[tuple[float, float]] = []
        self._total = 0.0
        self._under_way: set[int] = set()
        self._lock = threading.Lock()

    def hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Takes note of an event that ends now, as listeners of `jax.monitoring` do."""
        if not event.startswith(_COMPILE_EVENTS):
            return
        with self._lock:
            self._follow(event)
            end = self._clock()
            start = end - duration_secs
            while self._spans and self._spans[-1][1] > start:
                first, last = self._spans.pop()
                self._total -= last - first
                start = min(start, first)
            self._spans.append((start, end))
            self._total += end - start

    def seconds(self) -> float:
        """Seconds so far; a program that is being compiled counts once it is done."""
        return self._total

    def compiling(self) -> bool:
        """Whether a program is being compiled, or fetched from the cache, right now."""
        return bool(self._under_way)

    def _follow(self, event: str) -> None:
        """A thread that has lowered a program compiles it next; nothing is reported when that begins."""
        thread = threading.get_ident()
        if event == _LOWERED:
            self._under_way.add(thread)
        elif event == _COMPILED:
            self._under_way.discard(thread)


@functools.cache
def _process_clock() -> CompileClock:
    from jax import monitoring  # here, so that a report can be made and progress shown without loading JAX

    clock = CompileClock()
    monitoring.register_event_duration_secs_listener(clock.hear)
    return clock


def compile_seconds() -> float:
    """Seconds in which this process was compiling, since this was first asked for."""
    return _process_clock().seconds()


def compiling_now() -> bool:
    """Whether this process is compiling a program right now."""
    return _process_clock().compiling()


class Stopwatch:
    """Splits wall time into phases that do not overlap and leave nothing out.

    Args:
      began: when what is measured began, by `clock`; what has passed since counts as `load`. Now when None.
      clock: seconds, never running backwards.
      compiled: seconds of them that were spent compiling.

    Example:
      >>> watch = Stopwatch()
      >>> with watch.phase("score"):
      ...     scores = [1.0]
      >>> sorted(watch.lap())
      ['compile', 'load', 'other', 'score']
    """

    def __init__(
        self,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        compiled: Callable[[], float] = compile_seconds,
    ) -> None:
        self._clock, self._compiled = clock, compiled
        self._compiled_at = compiled()
        self._at = clock() if began is None else began
        self._spent: Seconds = {}
        self._current = "load"
        self._switch("other")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts as `name`; a phase inside another one is not part of that one."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def lap(self) -> Seconds:
        """Seconds by phase since the last lap, or since the beginning; their sum is the wall time in between."""
        self._switch(self._current)
        spent, self._spent = self._spent, {}
        return spent

    def _switch(self, name: str) -> str:
        now, compiled = self._clock(), self._compiled()
        # Never more than has passed: a thread that compiles may have begun in an earlier phase.
        compiling = min(compiled - self._compiled_at, now - self._at)
        self._spent = added([self._spent, {self._current: now - self._at - compiling, "compile": compiling}])
        self._at, self._compiled_at = now, compiled
        outer, self._current = self._current, name
        return outer


def added(parts: Iterable[Mapping[str, float]]) -> Seconds:
    """Sums by name."""
    total: Seconds = {}
    for part in parts:
        for name, seconds in part.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def row_seconds(spent: Mapping[str, float]) -> Seconds:
    """Seconds as a row of metrics.jsonl has them: `{"compile_seconds": 1.234, …}`, every phase, 0 where unvisited."""
    return {f"{name}_seconds": round(spent.get(name, 0.0), 3) for name in PHASES}


def total_seconds(rows: Iterable[Mapping[str, float | None]], after: Mapping[str, float] | None = None) -> Seconds:
    """A whole run's seconds: `total`, then every phase.

    Args:
      rows: of metrics.jsonl.
      after: what was spent after the last row was written.
    """
    parts = [{name: row.get(f"{name}_seconds") or 0.0 for name in PHASES} for row in rows]
    spent = added([*parts, after or {}])
    return {"total": round(sum(spent.values()), 3)} | {name: round(spent.get(name, 0.0), 3) for name in PHASES}


class Forecast:
    """How long the rest of an experiment will take, from the rounds that this session has finished.

    A round's training takes time in proportion to its labels; what else it does takes as long in every round, but for
    a strategy's first one, which scores nothing. Loading and compiling happen once, and are left out.

    Args:
      labels: strategy -> labels after each round of a run, round 0 first.
      runs: strategy of each run.

    Example:
      >>> forecast = Forecast({"star": [10, 20, 30]}, ["star"])
      >>> forecast.add("star", {"round": 0, "labelled": 10, "train_seconds": 1.0, "evaluate_seconds": 0.5})
      >>> forecast.left
      6.0
    """

    def __init__(self, labels: Mapping[str, Sequence[int]], runs: Sequence[str]) -> None:
        self._waiting = [
            (strategy, number, count) for strategy in runs for number, count in enumerate(labels[strategy])
        ]
        self.rounds = len(self._waiting)
        self._seen: list[tuple[str, bool, float]] = []
        self._trained, self._rows = 0.0, 0

    @property
    def done(self) -> int:
        """Rounds that are finished."""
        return self.rounds - len(self._waiting)

    def skip(self, strategy: str, rounds: int, first: int = 0) -> None:
        """Takes out rounds of a run from `first` to before `rounds`, which this session does not play."""
        for number in range(first, rounds):
            self._take(strategy, number)

    def add(self, strategy: str, row: Mapping[str, float | None]) -> None:
        """Takes note of a finished round: `round`, `labelled` and seconds by phase, as in metrics.jsonl."""
        number, labelled = int(row["round"] or 0), int(row["labelled"] or 0)
        self._take(strategy, number)
        rest = sum(row.get(f"{name}_seconds") or 0.0 for name in ("score", "evaluate", "write", "other"))
        self._seen.append((strategy, number > 0, rest))
        self._trained += row.get("train_seconds") or 0.0
        self._rows += labelled

    @property
    def left(self) -> float | None:
        """Seconds that the rounds which are not finished will take; None before one is."""
        return self._of(self._waiting)

    @property
    def left_after_next(self) -> float | None:
        """The same without the round that is next, or under way."""
        return self._of(self._waiting[1:])

    def _of(self, rounds: Sequence[tuple[str, int, int]]) -> float | None:
        if not self._seen:
            return None
        a_label = self._trained / self._rows if self._rows else 0.0
        return sum(a_label * labels + self._rest(strategy, number > 0) for strategy, number, labels in rounds)

    def _rest(self, strategy: str, later: bool) -> float:
        """Mean seconds of a round besides its training: of its own kind, or else of the most similar kind seen."""
        kinds = (
            [rest for name, kind, rest in self._seen if (name, kind) == (strategy, later)],
            [rest for _, kind, rest in self._seen if kind == later],
            [rest for _, _, rest in self._seen],
        )
        found = next(kind for kind in kinds if kind)
        return sum(found) / len(found)

    def _take(self, strategy: str, number: int) -> None:
        for place, (name, at, _) in enumerate(self._waiting):
            if (name, at) == (strategy, number):
                del self._waiting[place]
                return
