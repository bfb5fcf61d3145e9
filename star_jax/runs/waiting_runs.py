"""Runs of an output folder that wait for people: which they are, what they have used, how they go on. Files only.

Nothing is locked or changed, and no JAX is imported: what looks on for days should hold neither memory nor a device.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.config import AUTO, ExperimentConfig
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.data.readers import is_file_name
from star_jax.errors import ConfigError
from star_jax.runs.files import read_jsonl
from star_jax.runs.run_settings import FIT_TO_MEMORY, differences
from star_jax.runs.stored_run import CONFIG_FILE


@dataclass(frozen=True)
class WaitingRuns:
    """Runs that one table of labels serves, and that one command goes on with.

    Attributes:
      folder: OUTPUT_DIR.
      runs: folders of runs, OUTPUT_DIR/STRATEGY/seed-N.
      config: of the first of them, with the plug-ins of all.
      whole: whether these are all runs of the folder.
    """

    folder: Path
    runs: tuple[Path, ...]
    config: ExperimentConfig
    whole: bool = True
    _known: dict[Path, tuple[int, frozenset[str]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def table(self) -> Path:
        """Where labels are written."""
        return self.folder / LABELS_FILE

    @property
    def strategies(self) -> list[str]:
        """Names, in the order of the folders."""
        return list(dict.fromkeys(run.parent.name for run in self.runs))

    def command(self) -> list[str]:
        """What goes on with the runs, as arguments of a process in the folder that the first one was started in."""
        seeds = dict.fromkeys(map(_seed, self.runs))
        plugins = ("--plugins", ",".join(self.config.plugins)) if self.config.plugins else ()
        return [
            *(sys.executable, "-m", "star_jax.run", "--config", str(self.runs[0] / CONFIG_FILE)),
            *("--output-dir", str(self.folder)),
            *("--strategies", ",".join(self.strategies), "--seeds", ",".join(seeds), *plugins),
        ]

    def finished(self) -> bool:
        """Whether all of them have their last round."""
        return all((run / "summary.json").exists() for run in self.runs)

    def busy(self) -> bool:
        """Whether a process is at work on one of them."""
        return any(map(_held, self.runs))

    def used(self) -> frozenset[str]:
        """Ids of what trainings have used, or passed over as not to be labelled.

        Raises:
          DataError: a file of a finished round is damaged.
        """
        files = [file for run in self.runs for file in sorted(run.glob("rounds/*/queried.jsonl"))]
        return frozenset().union(*map(self._ids, files))

    def _ids(self, file: Path) -> frozenset[str]:
        """Ids in a file, which is read again only where it has changed."""
        changed = file.stat().st_mtime_ns
        if file not in self._known or self._known[file][0] != changed:
            rows = read_jsonl(file)
            self._known[file] = (changed, frozenset(str(row["id"]) for row in rows if "id" in row))
        return self._known[file][1]

    def rounds(self) -> tuple[int, int]:
        """Rounds that the run which is least far has finished, and rounds that a run has."""
        finished = [len(read_jsonl(run / "metrics.jsonl")) for run in self.runs]
        return min(finished), self.config.loop.rounds

    def accuracy(self) -> float | None:
        """After the last round of the run that is furthest; None before the first."""
        rows = max((read_jsonl(run / "metrics.jsonl") for run in self.runs), key=len)
        value = rows[-1].get("accuracy") if rows else None
        return value if isinstance(value, float | int) else None


def find_waiting(place: str) -> WaitingRuns:
    """The runs in an output folder, or a run alone, that labels are waited for by.

    Args:
      place: OUTPUT_DIR, or OUTPUT_DIR/STRATEGY/seed-N.

    Raises:
      ConfigError: there is no run, all are finished, or nobody is asked for labels.
      DataError: a config.yaml cannot be read.
    """
    path = Path(place).expanduser()
    if not path.is_dir():
        raise ConfigError(f"there is no folder {place}; name the output folder of a run that waits for labels")
    alone = (path / CONFIG_FILE).is_file()
    path = path.resolve() if alone else path  # whose parents have the names of the strategy and the folder
    folder = path.parents[1] if alone else path
    runs = [path] if alone else sorted(file.parent for file in path.glob(f"*/seed-*/{CONFIG_FILE}"))
    if not runs:
        raise ConfigError(
            f"{place} holds no run (no STRATEGY/seed-N with {CONFIG_FILE}); start one with star-jax run, and name its "
            "output folder here"
        )
    going = [run for run in runs if not (run / "summary.json").exists()]
    if not going:
        raise ConfigError(f"every run in {place} is finished; there is nothing to label")
    config = _shared_config(going)
    _refuse_unwanted_runs(place, folder, going)
    _refuse_another_place(config)
    if not (folder / LABELS_FILE).exists():
        raise ConfigError(f"nobody is asked for labels in {folder}: {_why_not(config)}")
    return WaitingRuns(folder, tuple(going), config, whole=not alone)


def _seed(run: Path) -> str:
    return run.name.removeprefix("seed-")


def _refuse_unwanted_runs(place: str, folder: Path, runs: Sequence[Path]) -> None:
    """Refuses runs that one command cannot go on with: it would begin another one, as of a seed that a strategy lacks.

    Raises:
      ConfigError: naming that run.
    """
    for strategy in dict.fromkeys(run.parent.name for run in runs):
        for seed in dict.fromkeys(map(_seed, runs)):
            other = folder / strategy / f"seed-{seed}"
            if not (other / CONFIG_FILE).is_file():
                raise ConfigError(
                    f"the strategies in {place} do not have the same seeds, and going on with all of them would begin "
                    f"{other}; name one run, such as {runs[0]}, and label for one after the other"
                )


def _shared_config(runs: Sequence[Path]) -> ExperimentConfig:
    """The configuration of all runs, which may differ in what fits into memory, and in plug-ins, which are all named.

    Raises:
      ConfigError: they cannot be gone on with by one command.
    """
    configs = {run: config_from_mapping(*load_yaml(run / CONFIG_FILE)) for run in runs}
    first = configs[runs[0]]
    for run, config in configs.items():
        changed = differences(first.to_dict(), config.to_dict()).keys() - set(FIT_TO_MEMORY)
        changed |= {"labels.skip"} if config.labels.skip != first.labels.skip else set()
        if changed:
            raise ConfigError(
                f"{runs[0]} and {run} differ in {', '.join(sorted(changed))}; name one of the two, and label for one "
                "after the other"
            )
    plugins = dict.fromkeys(name for config in configs.values() for name in config.plugins)
    return replace(first, plugins=tuple(plugins))


def _refuse_another_place(config: ExperimentConfig) -> None:
    """Refuses to go on in another working folder than the run was started in, where its files have relative names.

    Raises:
      ConfigError: naming one that is not there.
    """
    named = {"data.train": config.data.train, "data.test": config.data.test, "training.replay": config.training.replay}
    for setting, source in named.items():
        if source is not None and is_file_name(source) and not Path(source).expanduser().exists():
            raise ConfigError(
                f"{setting} of the run is {source}, and there is no such file; call star-jax label in the folder that "
                "the run was started in"
            )


def _why_not(config: ExperimentConfig) -> str:
    """Why there is no table."""
    if config.annotator not in (AUTO, "csv", "llm"):
        return f"annotator is {config.annotator}, which answers by itself"
    return f"there is no {LABELS_FILE} yet; run star-jax run until it says that examples need a label"


def _held(run: Path) -> bool:
    """Whether a process has the lock of a run's folder (`run_folder`)."""
    try:
        descriptor = os.open(run / ".lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
