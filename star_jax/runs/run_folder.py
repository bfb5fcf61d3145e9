"""The folder one run writes, OUTPUT_DIR/STRATEGY/seed-N: its layout, its lock and what it refuses.

Files only, no arrays and no JAX. Every file is written atomically, so a run that is killed leaves a folder that
can be read and continued, and a report may be built while a run is under way.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from star_jax.config import ExperimentConfig, SimulatedConfig
from star_jax.config_file import without_former_settings
from star_jax.documents import exists
from star_jax.errors import ConfigError
from star_jax.runs.files import (
    JsonObject,
    clean,
    plain,
    read_json,
    read_jsonl,
    read_yaml,
    write_json_atomic,
    write_jsonl_atomic,
    write_yaml_atomic,
)
from star_jax.runs.schemas import (
    METRICS,
    METRICS_REQUIRED,
    QUERIED,
    QUERIED_REQUIRED,
    SUMMARY,
    SUMMARY_REQUIRED,
    check_settings,
)

PACKAGES = (
    "star_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "numpy",
    "transformers",
    "datasets",
)
"""Packages whose versions can change a result, recorded in environment.json."""

FINGERPRINTS = {
    "pool": "ids or prompts of the pool",
    "test": "the test examples",
    "model": "the files of model.path",
    "start": "the files of model.adapter",
    "replay": "the rows of training.replay",
    "plugins": "the files of the strategy or the task",
}
"""Entries of data.json that a run must find again, and what has changed where it does not."""

NOT_COMPARED = ("output_dir", "strategies", "seeds", "plugins", "track", "labels.skip", "labels.columns")
"""Configuration keys that do not change what one strategy and seed compute."""

LATER = ("annotator", *(f"simulated.{entry.name}" for entry in dataclasses.fields(SimulatedConfig)))
"""Configuration keys that the first release did not have."""

FIT_TO_MEMORY = ("scoring.batch_size", "generation.batch_size", "training.rematerialise")
"""Configuration keys that change results by rounding alone; a run that ran out of memory goes on with others."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> JsonObject:
    """Nested settings as one level of dotted keys, `{"loop.rounds": 10, …}`."""
    flat: JsonObject = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ -> (old, new), `"absent"` for a key one side lacks.

    `NOT_COMPARED` keys are left out. Both sides are compared as written (`plain`). A setting that `old` lacks counts as
    its default, for it may be from a release that did not have it; one of a former name counts as that of today.
    """
    flat_old, flat_new = (_defaults() | flatten(plain(without_former_settings(one))) for one in (old, new))
    keys = [key for key in {**flat_new, **flat_old} if key not in NOT_COMPARED]
    pairs = {key: (flat_old.get(key, "absent"), flat_new.get(key, "absent")) for key in keys}
    return {key: (before, now) for key, (before, now) in pairs.items() if before != now}


@functools.cache
def _defaults() -> JsonObject:
    return flatten(plain(ExperimentConfig().to_dict()))


def environment(device: str) -> JsonObject:
    """What a run ran on: Python, platform, package versions, device, command line, start time, source revision.

    Args:
      device: kind of accelerator, as the caller's array library names it.
    """
    versions: JsonObject = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
        "revision": source_revision(),
    }


def source_revision() -> str | None:
    """Git commit of the source, with `-dirty` where files were changed; None when not run from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


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
        repeats this run alone. It and environment.json are written anew until a round is finished; from then on only
        `FIT_TO_MEMORY` keys may change, in config.yaml once the run goes on (`record`).

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
                _refuse_changes(path, read_yaml(stored, check_settings), own)
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

    @staticmethod
    def origin(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
        """Hash of the settings that are compared and of the data: a choice made with others means nothing."""
        free = (*NOT_COMPARED, *FIT_TO_MEMORY)
        settings = {name: value for name, value in flatten(plain(config)).items() if name not in free}
        # As the first release hashed them, so that a choice that waits for labels survives: settings that came later
        # count where they differ from their default, and the released scale by its former name.
        settings = {name: value for name, value in settings.items() if name not in LATER or value != _defaults()[name]}
        released = settings["acquisition.normaliser"] == "released" if "acquisition.normaliser" in settings else False
        if "acquisition.normaliser" in settings:
            settings["acquisition.arithmetic"] = "released" if released else "standard"
            settings["acquisition.normaliser"] = None if released else settings["acquisition.normaliser"]
        facts = {name: data[name] for name in FINGERPRINTS if name in data}
        return hashlib.sha256(json.dumps([settings, facts], sort_keys=True).encode()).hexdigest()

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


def _refuse_changes(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    changed = {key: pair for key, pair in differences(stored, config).items() if key not in FIT_TO_MEMORY}
    if changed:
        listed = "; ".join(
            f"{key}: {_said(before)} in the folder, {_said(now)} now" for key, (before, now) in changed.items()
        )
        raise ConfigError(
            f"{path} was made with another configuration ({listed}); choose another --output-dir or delete the folder"
        )


def _refuse_other_data(path: Path, data: Mapping[str, Any] | None) -> None:
    stored = path / "data.json"
    if data is None or not exists(stored):
        return
    before = read_json(stored)
    changed = [said for name, said in FINGERPRINTS.items() if name in before and before[name] != data.get(name)]
    if changed:
        raise ConfigError(
            f"{path} was made with other data or another model ({' and '.join(changed)} have changed); "
            "choose another --output-dir or delete the folder"
        )


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
