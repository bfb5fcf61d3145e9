"""trackio and Weights & Biases: one adapter, for trackio keeps to the interface of `wandb.init`, `log` and `finish`.

trackio keeps everything on this machine; wandb needs an account, or `WANDB_MODE=offline`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax.tracking.tracker import TrackedRun

AXES = {"train": "train/step", "round": "round/labelled"}
"""Beginning of a figure's name -> the figure it is plotted over: the libraries' own steps count calls."""


class WandbLikeTracker:
    """Sends scalars, the configuration and the report to a library with wandb's interface.

    Args:
      library: `wandb` or `trackio`.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._run: Any = None
        self._last: TrackedRun | None = None

    def start(self, run: TrackedRun) -> None:
        """Opens a run of the project that is named after the output folder, or goes on with it."""
        self._last = run
        options: dict[str, Any] = {"project": run.experiment, "name": run.name, "config": dict(run.config)}
        if self._library.__name__ == "wandb":
            options |= {"id": _identifier(run), "dir": str(run.folder)}
        self._run = self._library.init(**options, resume="allow")
        if self._library.__name__ == "wandb":
            for kind, axis in AXES.items():
                self._run.define_metric(f"{kind}/*", step_metric=axis)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends figures."""
        kinds = {name.partition("/")[0] for name in values}
        self._library.log({**values, **{AXES[kind]: step for kind in sorted(kinds) if kind in AXES}})

    def finish(self) -> None:
        """Closes the run."""
        if self._run is not None:
            self._library.finish()
            self._run = None

    def report(self, path: Path) -> None:
        """Adds the page to the run that was last, opened once more: it is made when all runs have ended."""
        if self._last is not None:
            self.start(self._last)
            page = path.read_text(encoding="utf-8")
            self._library.log({"report": self._library.Html(page)})
            self.finish()


def trackio_tracker() -> WandbLikeTracker:
    """A tracker by trackio."""
    import trackio  # an extra

    return WandbLikeTracker(trackio)


def wandb_tracker() -> WandbLikeTracker:
    """A tracker by Weights & Biases."""
    import wandb  # an extra

    return WandbLikeTracker(wandb)


def _identifier(run: TrackedRun) -> str:
    """The same for the same folder, so that a run that is taken up goes on in its place."""
    return hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
