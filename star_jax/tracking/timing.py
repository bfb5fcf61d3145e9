"""Where a run's wall time goes: seconds by phase, compilation apart from the phase that it happened in.

Belongs here: clocks, and adding up what they say. Nothing here imports JAX before a compilation has to be heard of.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

Seconds = dict[str, float]
"""Phase -> seconds."""

PHASES = ("compile", "load", "score", "train", "evaluate", "write", "other")
"""What a run's wall time is split into, without overlap.

`compile` is tracing, lowering and compiling, or fetching a compiled program from the cache, wherever it happens; no
other phase contains it. `load` is everything up to the first batch: imports, model, data, tokenising. `score` and
`evaluate` contain the base model's pass over the pool and over the test set. `write` is files and checkpoints.
"""

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
        self._lock = threading.Lock()

    def hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Takes note of an event that ends now, as listeners of `jax.monitoring` do."""
        if not event.startswith(_COMPILE_EVENTS):
            return
        with self._lock:
            end = self._clock()
            start = end - duration_secs
            while self._spans and self._spans[-1][1] > start:
                first, last = self._spans.pop()
                self._total -= last - first
                start = min(start, first)
            self._spans.append((start, end))
            self._total += end - start

    def seconds(self) -> float:
        """Seconds so far."""
        return self._total


@functools.cache
def _process_clock() -> CompileClock:
    from jax import monitoring  # here, so that a report can be made and progress shown without loading JAX

    clock = CompileClock()
    monitoring.register_event_duration_secs_listener(clock.hear)
    return clock


def compile_seconds() -> float:
    """Seconds in which this process was compiling, since this was first asked for."""
    return _process_clock().seconds()


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
