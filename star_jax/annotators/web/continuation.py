"""The run goes on by itself: once nothing is left to label, its command is started again as a process of its own.

A small machine of phases that is asked every moment what there is to do. What it knows is on disk: where this process
is killed, the run that it has started goes on, and the next one finds it at work, or finds what it has asked for since.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from star_jax.errors import ConfigError, DataError

NEEDS_LABELS = 3
"""Exit code of a run that waits for a person (`cli.guard`)."""

IN_USE = "is in use by another process"
"""What a run says that has found another one at work (`runs.run_folder`); nobody has to do anything about it."""

LOG_BYTES = 20_000
"""End of the run's output that is looked at for its last line."""

_STOP_SECONDS = 60.0


class Phase(Enum):
    """What is going on."""

    LABELLING = "labelling"
    """Labels are missing."""
    FULL = "full"
    """None is missing; the run is about to go on."""
    RUNNING = "running"
    """A process trains and picks."""
    FINISHED = "finished"
    """The last round is done."""
    FAILED = "failed"
    """The run has stopped over something that a person has to put right."""


class Status(NamedTuple):
    """What the page says about the run.

    Attributes:
      phase: what is going on.
      line: the last line of the run's output, or why it stopped.
      seconds: until the run goes on, in `FULL`.
    """

    phase: Phase
    line: str = ""
    seconds: float = 0.0


class Runs(Protocol):
    """What is known of the runs that labels are for: see `runs.waiting_runs.WaitingRuns`."""

    def command(self) -> Sequence[str]:
        """The process that goes on with them."""
        ...

    def busy(self) -> bool:
        """Whether some process is at work on them."""
        ...

    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        ...


class Table(Protocol):
    """What is known of the table of labels: see `desk.Desk`."""

    def missing(self) -> int:
        """How many labels there are to give."""
        ...

    def names(self) -> Collection[str]:
        """Ids of what was asked for."""
        ...

    def version(self) -> object:
        """Another value whenever the table has changed."""
        ...


class Continuation:
    """Starts the run whenever all is labelled, and knows how it goes."""

    def __init__(
        self,
        runs: Runs,
        table: Table,
        log: Path,
        pause: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is started yet.

        Args:
          runs: that labels are for.
          table: that they are written into.
          log: file for the run's output.
          pause: seconds between the last label and the start of the run, in which it can be taken back.
          clock: seconds, never running backwards.
        """
        self._runs, self._table, self._log = runs, table, log
        self._pause, self._clock = pause, clock
        self._child: subprocess.Popen[bytes] | None = None
        self._begin = 0  # of what the present process has printed
        self._asked: frozenset[str] = frozenset()  # before it was started
        self._full_since: float | None = None
        self._failed: tuple[str, object] | None = None
        self._lock = threading.RLock()
        self.status = Status(Phase.LABELLING)

    def look(self) -> Status:
        """Does what there is to do now, and says what is going on."""
        with self._lock:
            try:
                self.status = self._next()
            except (ConfigError, DataError, OSError) as error:  # it is asked again in a moment
                self.status = Status(Phase.FAILED, said(error))
            return self.status

    def go_on(self) -> None:
        """Does not wait any longer: starts the run where all is labelled, also after it has failed."""
        with self._lock:
            self._failed, self._full_since = None, self._clock() - self._pause
            self.look()

    def held(self) -> AbstractContextManager[object]:
        """Within it, no other thread starts a run."""
        return self._lock

    def may_take_back(self) -> bool:
        """Whether a label can be emptied: not while a process may be reading it."""
        return self.look().phase is not Phase.RUNNING

    def busy(self) -> bool:
        """Whether some process is at work on the runs, started here or by hand; nothing is started."""
        return (self._child is not None and self._child.poll() is None) or self._runs.busy()

    def _next(self) -> Status:
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return Status(Phase.RUNNING, last_line(self._log, self._begin))
            self._child = None
            self._ended(code)
        if self._runs.busy():
            self._full_since = None
            return Status(Phase.RUNNING, "another process is at work on it")
        if self._runs.finished():
            return Status(Phase.FINISHED)
        if self._failed is not None and self._failed[1] == self._table.version():
            return Status(Phase.FAILED, self._failed[0])
        self._failed = None
        try:
            missing = self._table.missing()
        except (ConfigError, DataError):
            missing = 1  # the page says what is wrong with the table
        if missing:
            self._full_since = None
            return Status(Phase.LABELLING)
        now = self._clock()
        self._full_since = now if self._full_since is None else self._full_since
        if (left := self._full_since + self._pause - now) > 0:
            return Status(Phase.FULL, seconds=left)
        return self._start()

    def _start(self) -> Status:
        self._full_since = None
        try:
            self._asked = frozenset(self._table.names())
            with self._log.open("ab") as output:
                self._begin = output.tell()
                self._child = _process(self._runs.command(), output)
        except (ConfigError, DataError, OSError) as error:
            self._failed = (f"the run cannot be started: {said(error)}", self._table.version())
            return Status(Phase.FAILED, self._failed[0])
        return Status(Phase.RUNNING)

    def _ended(self, code: int) -> None:
        """Remembers why the run did not go on, until somebody changes the table or says that it shall."""
        line = last_line(self._log, self._begin).removeprefix("star_jax: ").removeprefix("error: ")
        if code == 0 or self._runs.busy() or IN_USE in line:
            return
        if code != NEEDS_LABELS:
            self._failed = (
                line or f"the run has stopped with exit code {code}, see {self._log}",
                self._table.version(),
            )
        elif self._asks_for_nothing():
            line = f"the run asks for labels that the table does not show, see {self._log}"
            self._failed = (line, self._table.version())

    def _asks_for_nothing(self) -> bool:
        """Whether starting the run again would change nothing.

        That all is labelled does not say so: a run that has asked writes its report, and somebody may be quicker.
        """
        try:
            return not self._table.missing() and self._asked >= set(self._table.names())
        except (ConfigError, DataError):
            return False  # the page says what is wrong with the table

    def stop(self) -> None:
        """Asks the run to stop after its step, and waits until it has."""
        with self._lock:
            child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_SECONDS)


def _process(command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    # In a session of its own, so that Ctrl-C reaches it once, from `stop`.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )


def said(error: Exception) -> str:
    """What is wrong, in a sentence; of an error of the system, with the file that it is about."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def last_line(log: Path, begin: int = 0) -> str:
    """The last line of a file, from a byte on, that has more than blanks in it; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(begin, log.stat().st_size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
