"""Run folders as data: what every figure and table of the report starts from.

A quantity that a run does not have is None throughout; only finished runs have an area under the curve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.documents import Kind, exists
from star_jax.errors import ConfigError
from star_jax.evaluation.curves import aubc_of_rounds
from star_jax.evaluation.statistics import PairedDifference, mean_and_sd, paired_difference
from star_jax.runs.files import JsonObject, read_json, read_jsonl, read_yaml
from star_jax.runs.run_settings import differences
from star_jax.runs.schemas import ENVIRONMENT, METRICS, METRICS_REQUIRED, PREDICTION, QUERIED, SUMMARY, check_settings
from star_jax.tracking.timing import Seconds, total_seconds

BASELINE = "random"
"""The strategy the others are compared with."""

FIRST = "star"
"""The strategy shown first."""


def first_labels(config: Mapping[str, Any]) -> str:
    """How a run's first labels were chosen, in words; in the configurations of earlier releases always at random."""
    how = (config.get("loop") or {}).get("initial", "random")
    return "at random" if how == "random" else f"by {how}"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
      path: OUTPUT_DIR/STRATEGY/seed-N.
      strategy: registry name.
      seed: seed of the run.
      rows: rows of metrics.jsonl, one a finished round.
      finished: whether every round is there.
    """

    path: Path
    strategy: str
    seed: int
    rows: list[JsonObject]
    finished: bool

    @cached_property
    def config(self) -> JsonObject:
        """The resolved configuration, empty where the folder has none."""
        path = self.path / "config.yaml"
        return read_yaml(path, check_settings) if exists(path) else {}

    @cached_property
    def environment(self) -> JsonObject:
        """What the run ran on, empty where the folder does not say."""
        path = self.path / "environment.json"
        return read_json(path, ENVIRONMENT) if exists(path) else {}

    @cached_property
    def facts(self) -> JsonObject:
        """Counts of pool and test set, empty where the folder has none."""
        path = self.path / "data.json"
        return read_json(path) if path.exists() else {}

    @property
    def base_accuracy(self) -> float | None:
        """Accuracy of the base model, before any training; None where no round has recorded it."""
        return next((row["base_accuracy"] for row in self.rows if row.get("base_accuracy") is not None), None)

    @property
    def waits(self) -> bool:
        """Whether the run has chosen what to label, and asks for it in the table beside the run folders."""
        asked = (self.path.parent.parent / LABELS_FILE).exists()
        return asked and not self.finished and any(self.path.glob("choice-*.npz"))

    @property
    def planned_rounds(self) -> int | None:
        """Rounds the configuration asks for."""
        return self.config.get("loop", {}).get("rounds")

    def column(self, name: str) -> list[Any]:
        """One metric over the rounds, None where a round has none."""
        return [row.get(name) for row in self.rows]

    def last(self, name: str) -> Any:
        """One metric after the last finished round."""
        return self.rows[-1].get(name) if self.rows else None

    @cached_property
    def area(self) -> float | None:
        """Area under the curve of accuracy over labels, in [0, 1]; None before the run has finished."""
        accuracy = self.column("accuracy")
        if not self.finished or not accuracy or None in accuracy:
            return None
        return aubc_of_rounds(self.rows)

    @cached_property
    def stopped(self) -> str | None:
        """Why the run stopped before its last round; None where it did not."""
        return read_json(self.path / "summary.json", SUMMARY).get("stopped") if self.finished else None

    @cached_property
    def seconds(self) -> Seconds:
        """Where the run's time went so far: `total`, and every phase of `tracking.timing.PHASES`."""
        if self.finished:
            spent = read_json(self.path / "summary.json", SUMMARY).get("seconds")
            if spent is not None:
                return spent
        return total_seconds(self.rows)

    @cached_property
    def predictions(self) -> list[JsonObject]:
        """Test predictions after the last finished round."""
        return self._rows_of(self.rows[-1]["round"], "predictions", PREDICTION) if self.rows else []

    @cached_property
    def queried(self) -> list[JsonObject]:
        """What was picked in all finished rounds, each row with its `round`."""
        numbers = [row["round"] for row in self.rows]
        return [{"round": number, **row} for number in numbers for row in self._rows_of(number, "queried", QUERIED)]

    def _rows_of(self, number: int, name: str, fields: Mapping[str, Kind]) -> list[JsonObject]:
        return read_jsonl(self.path / "rounds" / f"{number:03d}" / f"{name}.jsonl", fields)


def read_runs(directory: Path) -> list[Run]:
    """All runs below an output folder: `star` first, `random` last, the others by name, then by seed.

    Raises:
      ConfigError: there is no run that has finished a round or waits for labels.
      DataError: a file of a run is damaged.
    """
    runs = []
    for path in directory.glob("*/seed-*"):
        seed = re.fullmatch(r"seed-(\d+)", path.name)
        if seed is None or not path.is_dir():
            continue
        rows = read_jsonl(path / "metrics.jsonl", METRICS, METRICS_REQUIRED)
        runs.append(Run(path, path.parent.name, int(seed[1]), rows, exists(path / "summary.json")))
    if not any(run.rows or run.waits for run in runs):
        what = (
            f"has {len(runs)} run(s), but none has finished a round yet" if runs else "holds no runs (STRATEGY/seed-N)"
        )
        raise ConfigError(f"{directory} {what}; give the --output-dir of a run")
    return sorted(runs, key=lambda run: (run.strategy == BASELINE, run.strategy != FIRST, run.strategy, run.seed))


def by_strategy(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each strategy, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.strategy, []).append(run)
    return groups


def settled(runs: Sequence[Run]) -> list[Run]:
    """The runs that figures over seeds are taken from: the finished ones, or while there are none, all.

    Averaging a finished run with one that has spent less would say nothing about either.
    """
    begun = [run for run in runs if run.rows]
    return [run for run in begun if run.finished] or begun


@dataclass(frozen=True)
class Comparison:
    """A strategy against random, over the seeds that both have finished with the same numbers of labels.

    Attributes:
      strategy: registry name.
      ours: its runs.
      theirs: random's, in the same order of seeds.
      areas: AUBC of both, run by run.
    """

    strategy: str
    ours: list[Run]
    theirs: list[Run]
    areas: list[tuple[float, float]]

    @property
    def difference(self) -> PairedDifference:
        """AUBC of the strategy minus random's."""
        return paired_difference([area for area, _ in self.areas], [area for _, area in self.areas])

    @property
    def wins(self) -> str:
        """On how many pairs the strategy's area is larger."""
        return f"{sum(ours > theirs for ours, theirs in self.areas)} of {len(self.areas)}"


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """Every strategy against random, where they have a finished seed in common."""
    groups = by_strategy(runs)
    # Areas over different budgets do not compare, so the numbers of labels are part of the key.
    baseline = {(run.seed, *run.column("labelled")): run for run in groups.get(BASELINE, [])}
    result = []
    for strategy, members in groups.items():
        found = Comparison(strategy, [], [], [])
        for ours in members:
            theirs = baseline.get((ours.seed, *ours.column("labelled")))
            if theirs is not None and ours.area is not None and theirs.area is not None:
                found.ours.append(ours)
                found.theirs.append(theirs)
                found.areas.append((ours.area, theirs.area))
        if found.areas and strategy != BASELINE:
            result.append(found)
    return result


@dataclass(frozen=True)
class Curve:
    """A metric over the rounds, averaged over seeds.

    Attributes:
      x: labels or rounds.
      mean: mean over the seeds that have a value there.
      sd: sample standard deviation, 0 where there is one seed.
    """

    x: list[float]
    mean: list[float]
    sd: list[float]


def curve(runs: Sequence[Run], name: str, over: str = "labelled") -> Curve:
    """A metric averaged over seeds at each value of `over`; points where no seed has a value are left out."""
    points: dict[float, list[float]] = {}
    for run in runs:
        for row in run.rows:
            if row.get(name) is not None:
                points.setdefault(row[over], []).append(row[name])
    x = sorted(points)
    pairs = [mean_and_sd(points[at]) for at in x]
    return Curve(x, [mean for mean, _ in pairs], [sd or 0.0 for _, sd in pairs])


def mean_of_groups(objects: Sequence[Mapping[str, float] | None], missing: float | None = None) -> dict[str, float]:
    """Mean a group over several `{group: value}` objects.

    Args:
      objects: one a seed; None is left out.
      missing: value of a group that an object does not name; None leaves the object out for that group.
    """
    present = [item for item in objects if item]
    names = dict.fromkeys(name for item in present for name in item)
    values = {name: [item.get(name, missing) for item in present] for name in names}
    return {
        name: mean_and_sd([number for number in numbers if number is not None])[0] for name, numbers in values.items()
    }


def config_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted settings that the runs do not share -> the values they have."""
    found: dict[str, list[Any]] = {}
    for run in runs[1:]:
        for key, pair in differences(runs[0].config, run.config).items():
            found.setdefault(key, [pair[0]])
            found[key] += [value for value in pair if value not in found[key]]
    return found
