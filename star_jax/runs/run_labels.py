"""The labels of a run, from the records of its rounds: what was asked, and what has been corrected since.

Where records and counts contradict each other, nobody goes on with less than was paid for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from star_jax.errors import ConfigError
from star_jax.runs.files import JsonObject, read_jsonl
from star_jax.runs.schemas import QUERIED, QUERIED_REQUIRED


class RunLabel(NamedTuple):
    """What became of an example that was asked for.

    Attributes:
      response: its label; None where it was skipped.
      round: that was the first to train on it, or to leave it out.
      file: that says so.
    """

    response: str | None
    round: int
    file: Path


def read_labels(path: Path, metrics: Sequence[Mapping[str, object]]) -> dict[str, RunLabel]:
    """Id -> label, of everything that the rounds have asked for, in the order in which it was last answered.

    Args:
      path: OUTPUT_DIR/STRATEGY/seed-N.
      metrics: rows of metrics.jsonl, of the rounds that are read.

    Raises:
      ConfigError: a file is missing, or what it holds is not what metrics.jsonl counts.
      DataError: a file is damaged.
    """
    found: dict[str, RunLabel] = {}
    for number, counted in enumerate(metrics):
        folder = path / "rounds" / f"{number:03d}"
        file = folder / "queried.jsonl"
        if not file.is_file():
            raise record_refusal(file, "is missing")
        rows = read_jsonl(file, QUERIED, QUERIED_REQUIRED)
        for row in rows:
            if row["id"] in found:
                raise record_refusal(file, f"holds {row['id']!r}, which was asked for before")
            _take(found, row, number, file)
        for row in read_jsonl(folder / "corrected.jsonl", QUERIED, QUERIED_REQUIRED):
            _take(found, row, number, folder / "corrected.jsonl")
        _check_counts(file, number, counted, found, sum(row["response"] is None for row in rows))
    return found


def record_refusal(file: Path, what: str) -> ConfigError:
    """An error that names the record of a round, what is wrong with it, and what can be done."""
    return ConfigError(f"{file} {what}; put back what was changed, or delete the run's folder to start again")


def _take(found: dict[str, RunLabel], row: JsonObject, number: int, file: Path) -> None:
    before, response = found.pop(row["id"], None), row["response"]
    trained = before is not None and before.response is not None and response is not None
    found[row["id"]] = RunLabel(response, before.round if before is not None and trained else number, file)


def _check_counts(
    file: Path, number: int, counted: Mapping[str, object], found: Mapping[str, RunLabel], skipped: int
) -> None:
    labels = sum(label.response is not None for label in found.values())
    if labels != counted.get("labelled"):
        raise record_refusal(
            file,
            f"and those before it hold {labels} labels, and metrics.jsonl counts {counted.get('labelled')} after "
            f"round {number}",
        )
    if skipped != counted.get("skipped", 0):
        raise record_refusal(
            file,
            f"holds {skipped} skipped examples, and metrics.jsonl counts {counted.get('skipped', 0)} in round {number}",
        )
