"""A run folder that was written before, as far as its adapter can be used: settings, labels, adapter. Files only.

Nothing is locked or changed, so a run that is under way or waits for labels can be read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from star_jax.config import ExperimentConfig
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError
from star_jax.runs.files import read_json, read_jsonl
from star_jax.runs.run_labels import read_labels
from star_jax.runs.run_settings import changed_data
from star_jax.runs.schemas import METRICS, METRICS_REQUIRED

ADAPTER_FILE, CONFIG_FILE = "adapter_config.json", "config.yaml"
"""Files that an adapter's folder and a run's folder are known by."""

RUNS_NAMED = 4
"""Runs that a message lists; more are counted."""


@dataclass(frozen=True)
class StoredRun:
    """One strategy with one seed, after its last finished round.

    Attributes:
      path: OUTPUT_DIR/STRATEGY/seed-N.
      rounds: finished ones.
      labels: id -> response of everything labelled in them.
      skipped: ids of what cannot be labelled.
    """

    path: Path
    rounds: int
    labels: Mapping[str, str]
    skipped: frozenset[str]

    @property
    def adapter(self) -> Path:
        """PEFT folder of the last finished round."""
        return self.path / "adapter"

    @cached_property
    def config(self) -> ExperimentConfig:
        """The run's settings; those that it is too old to have are the defaults.

        Raises:
          ConfigError: config.yaml cannot be used.
        """
        return config_from_mapping(*load_yaml(self.path / CONFIG_FILE))

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config.seeds[0]

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Fingerprints of the data and the model that the run began with; empty where it has none."""
        stored = self.path / "data.json"
        return read_json(stored) if stored.exists() else {}

    def check_data(self, facts: Mapping[str, Any], names: tuple[str, ...]) -> None:
        """Refuses data that are not those of the run.

        Args:
          facts: fingerprints of today.
          names: which of `FINGERPRINTS` are compared.

        Raises:
          ConfigError: naming what has changed.
        """
        if changed := changed_data(self.facts, facts, names):
            raise ConfigError(f"{self.path} {changed}; put them back as they were")

    def test_predictions(self) -> list[dict[str, Any]]:
        """Rows of the last predictions.jsonl: `id`, `confidence`, `correct` and more."""
        return read_jsonl(self.path / "rounds" / f"{self.rounds - 1:03d}" / "predictions.jsonl")


def find_run(place: str) -> StoredRun | None:
    """The run that a folder is, belongs to, or is the only one in; None for an adapter that is none of a run's.

    Args:
      place: OUTPUT_DIR/STRATEGY/seed-N, the adapter in it, an OUTPUT_DIR that holds a single run, or another adapter.

    Raises:
      ConfigError: there is no such folder, it is none of these, the run has not finished a round, or labels that it
        counts are missing.
      DataError: the run's files are damaged.
    """
    path = Path(place).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"there is no folder {place}; name a run folder (OUTPUT_DIR/STRATEGY/seed-N), or an adapter's"
        )
    if (path / ADAPTER_FILE).is_file():
        within = (path.resolve().parent / CONFIG_FILE).is_file() and path.resolve().name == "adapter"
        return read_run(path.resolve().parent) if within else None
    if (path / CONFIG_FILE).is_file():
        return read_run(path)
    runs = sorted(found.parent for found in path.glob(f"*/seed-*/{CONFIG_FILE}"))
    if not runs:
        raise ConfigError(
            f"{place} is neither a run folder (OUTPUT_DIR/STRATEGY/seed-N, with {CONFIG_FILE}) nor an adapter's (with "
            f"{ADAPTER_FILE})"
        )
    if len(runs) > 1:
        names = ", ".join(map(str, runs[:RUNS_NAMED]))
        more = f" and {len(runs) - RUNS_NAMED} more" if len(runs) > RUNS_NAMED else ""
        raise ConfigError(f"{place} holds {len(runs)} runs; name one of them: {names}{more}")
    return read_run(runs[0])


def read_run(path: Path) -> StoredRun:
    """Reads a run folder; errors as those of `find_run`."""
    metrics = read_jsonl(path / "metrics.jsonl", METRICS, METRICS_REQUIRED)
    found = read_labels(path, metrics)
    labels = {name: label.response for name, label in found.items() if label.response is not None}
    run = StoredRun(path, len(metrics), labels, frozenset(found.keys() - labels.keys()))
    if not metrics or not (run.adapter / ADAPTER_FILE).is_file():
        raise ConfigError(
            f"{path} has no adapter yet, for no round of it is finished; go on with star-jax run, and label what it "
            "asks for"
        )
    return run
