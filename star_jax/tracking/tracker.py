"""The tracker protocol: where figures of a run go besides its files, and what sends them there.

A tracker is a convenience: what it cannot do is said once and stops nothing, for the figures are in the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from star_jax.errors import ConfigError
from star_jax.registry import TRACKERS
from star_jax.tracking.console import round_title

EXTRAS = {"tensorboard": "track", "trackio": "track", "wandb": "wandb"}
"""Tracker -> the extra of this package that its library comes with."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
      experiment: name of the experiment's output folder.
      name: `STRATEGY/seed-N`.
      folder: of the run; a tracker that writes files may make a folder of its own there.
      config: the experiment, nested plain values.
      resumed: whether the run is taken up again.
      title: its name for people.
    """

    experiment: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool = False
    title: str = ""


class Tracker(Protocol):
    """Takes the figures of one run after another."""

    def start(self, run: TrackedRun) -> None:
        """A run begins, or is taken up."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of the run that was started last, at a step: training steps for `train/…`, labels for `round/…`."""
        ...

    def finish(self) -> None:
        """The run has ended, or has been interrupted."""
        ...

    def report(self, path: Path) -> None:
        """The report of all runs has been written."""
        ...


def register_tracker(name: str) -> Callable[[Any], Any]:
    """Decorator: registers a class, or a function without arguments, that makes a tracker.

    Raises:
      ConfigError: the package has a tracker of that name.

    Example:
      >>> @register_tracker("printer")
      ... class Printer:
      ...     def start(self, run):
      ...         print("started", run.name)
      ...     def log(self, values, step):
      ...         print(step, dict(values))
      ...     def finish(self):
      ...         pass
      ...     def report(self, path):
      ...         pass
    """

    def register(factory: Any) -> Any:
        TRACKERS.register(name, factory)
        return factory

    return register


class Tracking:
    """All trackers of an experiment as one, which never fails: a tracker that does is named, and left out from then on.

    Args:
      trackers: by name.
      log: told what failed.

    Example:
      >>> Tracking({}, print).finish()
    """

    def __init__(self, trackers: Mapping[str, Tracker], log: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._log = log

    def start(self, run: TrackedRun) -> None:
        """As `Tracker.start`."""
        self._each(lambda tracker: tracker.start(run))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """As `Tracker.log`; what is no finite number is left out."""
        numbers = {name: float(value) for name, value in values.items() if _is_number(value)}
        if numbers:
            self._each(lambda tracker: tracker.log(numbers, step))

    def losses(self, losses: np.ndarray, before: int) -> None:
        """The cross-entropy of each step of a training, the first of which is number `before` of the run."""
        for number, loss in enumerate(losses.tolist(), start=before):
            self.log({"train/cross_entropy": loss}, number)

    def finish(self) -> None:
        """As `Tracker.finish`."""
        self._each(lambda tracker: tracker.finish())

    def report(self, path: Path) -> None:
        """As `Tracker.report`."""
        self._each(lambda tracker: tracker.report(path))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # libraries and networks fail in any way
                del self._trackers[name]
                self._log(f"tracker {name} failed and is left out from here on: {type(error).__name__}: {error}")


class ConsoleTracker:
    """A line a round for a person; what every experiment has, and the others are opened beside.

    Args:
      log: prints a line.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> None:
        """Remembers the run, whose title the lines begin with."""
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Prints the figures of a round; those of a training step have their bar."""
        if self._run is not None and {"round/round", "round/accuracy", "round/ece"} <= values.keys():
            place = round_title(int(values["round/round"]), self._run.config["loop"]["rounds"])
            figures = f"accuracy {values['round/accuracy']:.3f}, ECE {values['round/ece']:.3f}"
            self._log(f"{self._run.title}, {place}: {step} labels, {figures}")

    def finish(self) -> None:
        """Forgets the run."""
        self._run = None

    def report(self, path: Path) -> None:
        """Nothing: the command prints its last line itself, on stdout, which scripts read."""


CONSOLE = "console"
"""Name of the tracker that is always there."""


def open_trackers(names: Sequence[str], log: Callable[[str], None]) -> Tracking:
    """The console, and the trackers of those names.

    Raises:
      ConfigError: there is no such tracker, or its library is not installed.
    """
    trackers: dict[str, Tracker] = {CONSOLE: ConsoleTracker(log)}
    for name in names:
        if name == CONSOLE:
            continue
        factory = TRACKERS.get(name, "track")
        try:
            trackers[name] = factory()
        except ImportError as error:
            extra = EXTRAS.get(name)
            how = f"it with pip install 'star_jax[{extra}]'" if extra else "it, or take the tracker out"
            raise ConfigError(
                f"track names {name}, which needs the package {error.name or error}; install {how}"
            ) from error
        except Exception as error:  # libraries and networks fail in any way
            log(f"tracker {name} cannot be started and is left out: {type(error).__name__}: {error}")
    return Tracking(trackers, log)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(np.isfinite(value))
