"""What watches the loop of a run: its phases are shown, and their seconds counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from star_jax.inference.batched import BatchLog, Logs, no_logs
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import Stopwatch


@dataclass(frozen=True)
class Timed:
    """An `active.loop.Observer` that shows progress and has the seconds counted.

    Attributes:
      progress: where to show it.
      watch: what counts; a phase goes by its own name there.
      title: what is shown before the name of a phase.
      logs: gives what keeps the scores of a pass as they come.
    """

    progress: Progress
    watch: Stopwatch
    title: str
    logs: Logs = no_logs

    def score_log(self, name: str) -> BatchLog | None:
        """What keeps the scores of the pass of that name; None keeps nothing."""
        return self.logs(name)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """One phase; where there is nothing to do it is not shown."""
        with self.watch.phase(name):
            if total:
                with self.progress.task(f"{self.title}: {name}", total, unit) as tick:
                    yield tick
            else:
                yield lambda count: None
