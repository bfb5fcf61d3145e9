"""TensorBoard: event files in RUN_FOLDER/tensorboard, so that `tensorboard --logdir OUTPUT_DIR` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from star_jax.tracking.tracker import TrackedRun

FOLDER = "tensorboard"
"""Name of the folder in a run's folder."""


class TensorBoardTracker:
    """Writes scalars and the configuration, by tensorboardX, which needs neither TensorFlow nor PyTorch."""

    def __init__(self) -> None:
        from tensorboardX import SummaryWriter  # an extra

        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._last: Path | None = None

    def start(self, run: TrackedRun) -> None:
        """Opens the run's event file; one that is taken up gets a file more."""
        self._last = run.folder / FOLDER
        self._writer = self._open(self._last)
        if not run.resumed:
            text = yaml.safe_dump(dict(run.config), sort_keys=False)
            self._writer.add_text("config", f"```\n{text}\n```", 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def report(self, path: Path) -> None:
        """Adds the report's place as a text to the last run."""
        if self._last is not None:
            writer = self._open(self._last)
            writer.add_text("report", str(path), 0)
            writer.close()

    def _open(self, folder: Path) -> Any:
        """A writer of a file more: those of one second would have the same name, and the later replace the earlier."""
        return self._make(logdir=str(folder), filename_suffix=f".{len(list(folder.glob('events.*')))}")
