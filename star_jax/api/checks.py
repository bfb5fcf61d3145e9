"""Arguments that a notebook passes and no type checker has seen."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.config import SEEDS, LoraConfig, TrainingConfig
from star_jax.environment import memory_bytes
from star_jax.errors import ConfigError
from star_jax.experiment.sizes import refuse_what_does_not_fit, training_demands
from star_jax.models.architecture import TransformerConfig


def check_whole(name: str, value: Any, least: int | None = None) -> int:
    """The value as an integer.

    Raises:
      ConfigError: it is none, or less than `least`.
    """
    if isinstance(value, bool | np.bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number")
    if least is not None and value < least:
        raise ConfigError(f"{name} is {value}; it must be at least {least}")
    return int(value)


def check_key(key: Any) -> int:
    """A seed that JAX's keys can be made of.

    Raises:
      ConfigError: it is no whole number from 0 to 2³² − 1.
    """
    if check_whole("key", key, 0) >= SEEDS:
        raise ConfigError(f"key is {key}; it must be less than {SEEDS}")
    return int(key)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuses a value that is none of the choices.

    Raises:
      ConfigError: naming them.
    """
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; choose from {', '.join(choices)}")


def check_fits(shape: TransformerConfig, training: TrainingConfig, lora: LoraConfig | None) -> None:
    """Refuses a training that memory does not hold, before anything is computed for it.

    Args:
      shape: of the model that is trained on.
      training: its settings.
      lora: of a fresh adapter; None where training goes on from one.

    Raises:
      ConfigError: naming the setting, what it takes and what there is.
    """
    refuse_what_does_not_fit(training_demands(training, lora, shape), memory_bytes())


def check_training(training: TrainingConfig, *, held_out: bool) -> None:
    """Refuses settings of a training that would have no effect.

    Args:
      training: the settings.
      held_out: whether a share of the labels can be held out.

    Raises:
      ConfigError: there is one.
    """
    if training.replay is not None:
        raise ConfigError("training.replay is set, which star-jax run alone reads; leave it out")
    if training.validation_fraction and not held_out:
        raise ConfigError(
            "training.validation_fraction is set, and fit trains on all labels that the pool has; leave it out, and "
            "judge the adapter with evaluate on a pool of its own"
        )


def check_replaceable(folder: str | Path, path: Path, own: Collection[str]) -> None:
    """Refuses to write a folder where something else is that would be lost.

    Args:
      folder: as the caller named it.
      path: of it.
      own: names of the files that are written.

    Raises:
      ConfigError: there is a file of that name, or the folder holds something else.
    """
    if path.is_dir():
        others = sorted({found.name for found in path.iterdir()} - set(own))
        if others:
            raise ConfigError(
                f"{folder} is there already and holds {others[0]}, which would be lost; name a folder that is new or "
                "empty"
            )
    elif path.exists():
        raise ConfigError(f"{folder} is a file; name a folder that is new or empty")
