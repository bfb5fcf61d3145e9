"""A command of the user's after each round, for example a copy of the run folder to where it outlives the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

FOLDER_VARIABLE = "STAR_JAX_RUN_FOLDER"
"""Environment variable of the command: the run folder, OUTPUT_DIR/STRATEGY/seed-N, absolute."""

ROUND_VARIABLE = "STAR_JAX_ROUND"
"""Environment variable of the command: the round that is finished, counted from 0."""


class AfterRound:
    """Runs a command of the shell after each round; where it fails, the run goes on, and says so at its end.

    Args:
      command: of the shell; None for none.
      log: where to say what went wrong.
    """

    def __init__(self, command: str | None, log: Callable[[str], None]) -> None:
        self._command, self._log = command, log
        self._failed = 0

    def __call__(self, folder: Path, number: int) -> None:
        """Runs it, and waits for it; what it prints to stdout is shown where it fails, and else dropped."""
        if self._command is None:
            return
        environment = {**os.environ, FOLDER_VARIABLE: str(folder.resolve()), ROUND_VARIABLE: str(number)}
        done = subprocess.run(
            self._command,
            shell=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            self._failed += 1
            last = next(
                (line.strip() for line in reversed(done.stdout.splitlines()) if line.strip()), "it said nothing"
            )
            self._log(f"warning: after_round ended with exit code {done.returncode} after round {number}: {last}")

    def conclude(self) -> None:
        """Says at the end how often it failed, where it did."""
        if self._failed:
            self._log(f"warning: after_round failed {self._failed} times; the run folders are complete on this machine")
