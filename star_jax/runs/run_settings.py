"""Settings of a run, compared with those of its folder: which may change, and what a choice depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.config import ExperimentConfig, LabelStudioConfig, LlmConfig, SimulatedConfig
from star_jax.config_file import without_former_settings
from star_jax.errors import ConfigError
from star_jax.runs.files import JsonObject, plain

FINGERPRINTS = {
    "pool": "ids or prompts of the pool",
    "test": "the test examples",
    "model": "the files of model.path",
    "start": "the files of model.adapter",
    "replay": "the rows of training.replay",
    "targets": "the prompts of acquisition.target_file",
    "plugins": "the files of the strategy or the task",
}
"""Entries of data.json that a run must find again, and what has changed where it does not."""

NOT_COMPARED = (
    *("output_dir", "strategies", "seeds", "plugins", "track", "after_round", "labels.skip", "labels.columns"),
    "loop.stop_when",
    *(f"llm.{name}" for name in ("base_url", "key_variable", "retries", "timeout", "parallel", "spending_limit")),
    *("llm.input_price", "llm.output_price", "label_studio.url", "label_studio.key_variable"),
)
"""Configuration keys that do not change what one strategy and seed compute."""

LATER = (
    *("mesh.data", "mesh.fsdp"),
    *("annotator", "acquisition.score_at_most", "acquisition.per_cost", "acquisition.target_file"),
    *("evaluation.answers", "loop.initial", "loop.budget_unit", "loop.budget_per_round"),
    *("training.min_steps", "training.average_fraction"),
    *("scoring.posterior", "scoring.tfb_tolerance", "scoring.samples", "scoring.temperature", "scoring.top_p"),
    *(f"simulated.{entry.name}" for entry in dataclasses.fields(SimulatedConfig)),
    *(f"llm.{entry.name}" for entry in dataclasses.fields(LlmConfig)),
    *(f"label_studio.{entry.name}" for entry in dataclasses.fields(LabelStudioConfig)),
)
"""Configuration keys that the first release did not have."""

FIT_TO_MEMORY = ("scoring.batch_size", "generation.batch_size", "training.rematerialise", "mesh.data", "mesh.fsdp")
"""Configuration keys that change results by rounding alone; a run that ran out of memory goes on with others, and one
that is moved to other devices."""


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


def choice_origin(config: Mapping[str, Any], data: Mapping[str, Any]) -> str:
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


def changed_data(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str] = ()) -> str | None:
    """Which fingerprints of data and model are others than those that a run began with, in words; None for none.

    Args:
      before: data.json of the run.
      now: fingerprints of today.
      names: of `FINGERPRINTS` that are compared; all of them where none is named.
    """
    changed = [FINGERPRINTS[name] for name in names or FINGERPRINTS if name in before and before[name] != now.get(name)]
    if not changed:
        return None
    return f"was made with other data or another model ({' and '.join(changed)} have changed)"


def refuse_changes(path: Path, stored: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses settings that are not those of the folder, but for what may change.

    Raises:
      ConfigError: naming each, with both values.
    """
    changed = {key: pair for key, pair in differences(stored, config).items() if key not in FIT_TO_MEMORY}
    if changed:
        listed = "; ".join(
            f"{key}: {_said(before)} in the folder, {_said(now)} now" for key, (before, now) in changed.items()
        )
        raise ConfigError(
            f"{path} was made with another configuration ({listed}); choose another --output-dir or delete the folder"
        )


def _said(value: Any) -> str:
    return "none" if value is None else str(value)
