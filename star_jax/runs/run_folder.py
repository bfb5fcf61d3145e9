"""The folder one run writes, OUTPUT_DIR/STRATEGY/seed-N: its layout, its lock and what it refuses.

Files only, no arrays and no JAX. Every file is written atomically, so a run that is killed leaves a folder that
can be read and continued, and a report may be built while a run is under way.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from star_jax.documents import exists
from star_jax.errors import ConfigError
from star_jax.runs.files import (
    JsonObject,
    clean,
    read_json,
    read_jsonl,
    read_yaml,
    write_json_atomic,
    write_jsonl_atomic,
    write_yaml_atomic,
)
from star_jax.runs.run_environment import environment
from star_jax.runs.run_settings import changed_data, differences, refuse_changes
from star_jax.runs.schemas import (
    METRICS,
    METRICS_REQUIRED,
    QUERIED,
    QUERIED_REQUIRED,
    SUMMARY,
    SUMMARY_REQUIRED,
    check_settings,
)


class RunFolder:
    """OUTPUT_DIR/STRATEGY/seed-N, held by one process at a time. Made by `open`; a context manager.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: Path, lock: int, config: Mapping[str, Any]) -> None:
        self.path = path
        self._lock: int | None = lock
        self._config = config

    @classmethod
    def open(
        cls,
        root: str | Path,
        strategy: str,
        seed: int,
        config: Mapping[str, Any],
        device: str,
        data: Mapping[str, Any] | None = None,
    ) -> Self:
        """Creates or continues the folder of one run and locks it until `close`.

        config.yaml is the given configuration with `strategies` and `seeds` narrowed to this run, so that it
        repeats this run alone, but for rounding where each seed draws a pool of its own. It and environment.json are
        written anew until a round is finished; from then on only `FIT_TO_MEMORY` keys may change, in config.yaml once
        the run goes on (`record`).

        Args:
          root: OUTPUT_DIR.
          strategy: registry name.
          seed: seed of the run.
          config: resolved configuration as nested dictionary (`ExperimentConfig.to_dict`).
          device: kind of accelerator, for environment.json.
          data: what identifies pool and test set, and counts about them, for data.json.

        Raises:
          ConfigError: another process holds the folder, or a round was finished in it with another configuration or
            other data.
        """
        path = Path(root) / strategy / f"seed-{seed}"
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be used ({error.strerror}); choose another --output-dir") from None
        try:
            clean(path)
            stored = path / "config.yaml"
            own = {**config, "strategies": [strategy], "seeds": [seed]}
            # Before a round is finished nothing is lost by starting with another configuration.
            if read_jsonl(path / "metrics.jsonl", METRICS, METRICS_REQUIRED):
                if not exists(stored):
                    raise ConfigError(
                        f"{path} has finished rounds and no config.yaml, which says what they were made with; put it "
                        "back, or delete the folder to start again"
                    )
                refuse_changes(path, read_yaml(stored, check_settings), own)
                _refuse_other_data(path, data)
            else:
                if data is not None:
                    write_json_atomic(path / "data.json", data)
                write_json_atomic(path / "environment.json", environment(device))
                write_yaml_atomic(stored, own)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock, own)

    def __getstate__(self) -> dict[str, Any]:
        """As another process has it: the lock is of the one that took it."""
        return self.__dict__ | {"_lock": None}

    def record(self) -> None:
        """Writes the configuration that the folder was opened with, where it is not the one in config.yaml."""
        stored = self.path / "config.yaml"
        if differences(read_yaml(stored, check_settings), self._config):
            write_yaml_atomic(stored, self._config)

    def close(self) -> None:
        """Lets go of the lock; closing twice does no harm."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def adapter(self) -> Path:
        """Where the last round's adapter lies (a PEFT folder); write it with `replace_folder_atomic`."""
        return self.path / "adapter"

    @property
    def finished(self) -> bool:
        """Whether the run has written its summary."""
        return exists(self.path / "summary.json")

    def round_path(self, number: int) -> Path:
        """rounds/RRR, which need not exist."""
        return self.path / "rounds" / f"{number:03d}"

    def metrics(self) -> list[JsonObject]:
        """Rows of metrics.jsonl, one a finished round, in order."""
        return read_jsonl(self.path / "metrics.jsonl", METRICS, METRICS_REQUIRED)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one round's row; its `round` must follow the last one's, errors otherwise as in `plain`."""
        rows = self.metrics()
        expected = rows[-1]["round"] + 1 if rows else 0
        if row["round"] != expected:
            raise ValueError(f"metrics.jsonl continues with round {expected}, not {row['round']}")
        write_jsonl_atomic(self.path / "metrics.jsonl", [*rows, row])

    def write_round(
        self, number: int, queried: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
    ) -> None:
        """Writes queried.jsonl and predictions.jsonl of one round."""
        write_jsonl_atomic(self.round_path(number) / "queried.jsonl", queried)
        write_jsonl_atomic(self.round_path(number) / "predictions.jsonl", predictions)

    def queried(self, number: int) -> list[JsonObject]:
        """Rows of rounds/RRR/queried.jsonl."""
        return read_jsonl(self.round_path(number) / "queried.jsonl", QUERIED, QUERIED_REQUIRED)

    def write_corrected(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes corrected.jsonl of one round: answers of earlier rounds that its training was the first to have."""
        write_jsonl_atomic(self.round_path(number) / "corrected.jsonl", rows)

    def corrected(self, number: int) -> list[JsonObject]:
        """Rows of rounds/RRR/corrected.jsonl; none where nothing was corrected."""
        return read_jsonl(self.round_path(number) / "corrected.jsonl")

    def drop_rounds_from(self, number: int) -> None:
        """Removes what rounds `number` and later wrote, so that no file runs ahead of the checkpoint resumed from."""
        rows = self.metrics()
        kept = [row for row in rows if row["round"] < number]
        numbered = [path for path in self.path.glob("rounds/*") if re.fullmatch(r"[0-9]+", path.name)]
        folders = [path for path in numbered if int(path.name) >= number]
        if len(kept) < len(rows) or folders:
            (self.path / "summary.json").unlink(missing_ok=True)
        if len(kept) < len(rows):
            write_jsonl_atomic(self.path / "metrics.jsonl", kept)
        for folder in folders:
            shutil.rmtree(folder)

    def reopen(self) -> None:
        """Takes back that the run is finished, for one that goes on beyond where it has stopped."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, which marks the run as finished."""
        write_json_atomic(self.path / "summary.json", summary)

    def summary(self) -> JsonObject:
        """What `write_summary` wrote."""
        return read_json(self.path / "summary.json", SUMMARY, SUMMARY_REQUIRED)


def stored_data(root: str | Path, strategy: str, seed: int) -> JsonObject:
    """data.json of a run; empty where there is none."""
    file = Path(root) / strategy / f"seed-{seed}" / "data.json"
    return read_json(file) if file.is_file() else {}


def _acquire(path: Path) -> int:
    """Takes the folder's lock and returns its file descriptor; the system frees it however the process ends."""
    descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{path} is in use by another process; wait for it, or choose another --output-dir") from None
    return descriptor


def _refuse_other_data(path: Path, data: Mapping[str, Any] | None) -> None:
    stored = path / "data.json"
    if data is None or not exists(stored):
        return
    if changed := changed_data(read_json(stored), data):
        raise ConfigError(f"{path} {changed}; choose another --output-dir or delete the folder")
