"""What every command ends in: an exit code, and one line on stderr for what the user can put right."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from star_jax.errors import ConfigError, DataError, LabelsNeeded
from star_jax.tracking.interruption import Terminated, asked, heeded, termination_heeded

AGAIN = 75
"""Exit code after SIGTERM where the same command goes on: `EX_TEMPFAIL` of sysexits.h, "try again"."""


def guarded_main(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    when_interrupted: str = "interrupted",
    when_terminated: str | None = None,
) -> int:
    """Runs a command; what the user can put right becomes one line on stderr.

    Args:
      main: takes the arguments after the program's name and returns an exit code.
      argv: those arguments; the process's own when None.
      when_interrupted: what to say after Ctrl-C.
      when_terminated: what to say after SIGTERM, of a command that has steps to stop after; None for one that has none
        and ends at once.

    Returns:
      The exit code: what `main` returned, 2 after a `ConfigError`, a `DataError`, a `FloatingPointError` (training
      or scores diverged), where memory is full or a file cannot be written, 3 where a person has to label first,
      `AGAIN` after SIGTERM, 130 after Ctrl-C, 141 when the reader of stdout went away.
    """
    try:
        with heeded(), nullcontext() if when_terminated is None else termination_heeded():
            code = stoppable(main, sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BaseException as error:
        ending = ending_of(error, when_interrupted, when_terminated)
        if ending is None:
            raise
        ending.say()
        return ending.code


class Ending(NamedTuple):
    """How a command ends.

    Attributes:
      code: of its exit.
      line: what it says last; empty for nothing.
      failed: whether that is said on stderr.
    """

    code: int
    line: str = ""
    failed: bool = True

    def say(self) -> None:
        """Prints the line."""
        if self.line:
            print(self.line, file=sys.stderr if self.failed else sys.stdout)


def ending_of(error: BaseException, when_interrupted: str, when_terminated: str | None = None) -> Ending | None:
    """What an error of a command comes to, as `guarded_main` lists it; None for a defect, whose traceback is wanted."""
    match error:
        case ConfigError() | DataError() | FloatingPointError():
            return Ending(2, f"star_jax: error: {' '.join(str(error).split())}")
        case MemoryError():
            return Ending(2, f"star_jax: error: out of memory ({error}); lower the batch sizes")
        case LabelsNeeded():
            return Ending(3, f"star_jax: {error}", failed=False)
        case Terminated():
            return Ending(AGAIN, f"star_jax: {when_terminated}")
        case KeyboardInterrupt():
            return Ending(130, f"star_jax: {when_interrupted}")
        case RuntimeError() if "RESOURCE_EXHAUSTED" in str(error):
            # What JAX raises when an accelerator's memory is full; its own class would need JAX imported here.
            said = "out of device memory; lower the batch sizes or token limits"
            return Ending(2, f"star_jax: error: {said} ({str(error).splitlines()[0]})")
        case BrokenPipeError():
            # `| head` has seen enough. What is still buffered goes nowhere, or the flush at exit would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return Ending(141)
        case OSError():
            place = f" ({error.filename})" if error.filename else ""
            return Ending(2, f"star_jax: error: {error.strerror or error}{place}; what was finished is kept")
    return None


def stoppable(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command; an error that comes after Ctrl-C is what some library has made of it."""
    try:
        return main(argv)
    except Exception as error:
        if asked():
            raise KeyboardInterrupt from error
        raise
