"""What a strategy asks of the settings of an experiment, found out before a run starts.

Shapes: `N` pool.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition.needs import Feature, GradientSketch, Group, Measure, Probabilities, Targets
from star_jax.acquisition.strategy import Query, Strategy, pick
from star_jax.config import ExperimentConfig
from star_jax.data.tasks.task import Task
from star_jax.errors import ConfigError

OF_ONE = "a strategy of one answer, for example star"
"""What a closed answer set, whose distribution is known exactly, is scored with."""

NO_TARGETS = "name a file of them in acquisition.target_file"
"""What to do where targets are needed and there are none."""

TARGETS, DETAILS = 3, (2, 3)
"""Target prompts, and samples and answers of a closed set, that a strategy is tried with."""

_TRIED = 32
"""Examples of the pool that a strategy is traced on before a run starts."""


def check_strategy_settings(strategy: Strategy, config: ExperimentConfig) -> None:
    """Refuses settings with which a strategy means nothing, and a strategy that cannot be traced.

    Args:
      strategy: from `get_strategy`.
      config: dropout of the adapter, how many samples and drawn answers there are and of what, and targets.

    Raises:
      ConfigError: dropout samples that are all the same, or one of them, or of the answers that are drawn, where they
        are to disagree; answers that are not the model's own to draw; no targets; or the strategy fails on a small
        pool.
    """
    scoring = config.scoring
    if strategy.targeted and config.acquisition.target_file is None:
        raise ConfigError(f"strategy {strategy.name} looks for what is like target prompts; {NO_TARGETS}")
    if strategy.sampled and scoring.posterior == "dropout" and config.lora.dropout == 0:
        raise ConfigError(
            f"strategy {strategy.name} averages over dropout samples and lora.dropout is 0, where all samples are "
            f"the same; set lora.dropout above 0, or choose another strategy or scoring.posterior"
        )
    if strategy.detailed or any(need.name.startswith("bald") for need in strategy.measures("full")):
        said = f"strategy {strategy.name} measures how samples disagree and scoring"
        if scoring.posterior == "none":
            raise ConfigError(f"{said}.posterior is none, which has no samples; choose another one")
        if scoring.mc_samples < 2:
            raise ConfigError(f"{said}.mc_samples is {scoring.mc_samples}; set it to 2 or more")
    if strategy.draws_answers:
        said = f"strategy {strategy.name} measures how drawn answers disagree and scoring"
        if scoring.answers != "generated":
            raise ConfigError(
                f"{said}.answers is {scoring.answers}, where none are drawn; choose generated, or {OF_ONE}"
            )
        if scoring.samples < 2:
            raise ConfigError(f"{said}.samples is {scoring.samples}; set it to 2 or more")
    arrays = [jax.ShapeDtypeStruct(shape_of(need, _TRIED), dtype_of(need)) for need in strategy.needs]
    key, index = jax.eval_shape(lambda: (jax.random.key(0), jnp.zeros((), jnp.int32)))
    unlabelled = jax.ShapeDtypeStruct((_TRIED,), bool)

    def trace(key: Array, features: list[Array], unlabelled: Array, index: Array) -> Any:
        return pick(strategy, key, features, unlabelled, Query(index, 2, _TRIED // 4))

    jax.eval_shape(trace, key, arrays, unlabelled, index)


def check_groups(strategy: Strategy, task: Task) -> None:
    """Refuses groups that are read from labels: a strategy would see what nobody has been asked yet.

    Raises:
      ConfigError: the strategy needs the groups of the data, and their field says nothing but the response.
    """
    if Group("data") in strategy.needs and task.group_field in task.label_fields:
        raise ConfigError(
            f"strategy {strategy.name} looks at the groups of the whole pool and format.group is {task.group_field}, "
            "a column of labels, which it is not to see; name another column, or choose another strategy"
        )


def check_closed(strategy: Strategy, task: Task) -> None:
    """Refuses a strategy that has no meaning for a closed answer set, or for free answers.

    Raises:
      ConfigError: it is the one, and the task has the other.
    """
    if strategy.detailed and task.candidates is None:
        raise ConfigError(
            f"strategy {strategy.name} needs the probabilities of a closed answer set and task {task.name} has none; "
            "name its answers where the pool is read, or choose another strategy, for example bald"
        )
    if strategy.draws_answers and task.candidates is not None:
        raise ConfigError(
            f"strategy {strategy.name} draws answers, and those of a closed set are not drawn, for their distribution "
            f"is known; choose {OF_ONE}"
        )


def dtype_of(need: Feature) -> Any:
    """Type of a feature's numbers."""
    return jnp.int32 if isinstance(need, Group) else jnp.float32


def shape_of(need: Feature, size: int, width: int = 4) -> tuple[int, ...]:
    """Shape of a feature of `size` examples, of a model that is `width` wide."""
    if isinstance(need, Measure | Group):
        return (size,)
    if isinstance(need, Probabilities):
        return (size, *DETAILS)
    if isinstance(need, Targets):
        return (TARGETS, need.embedding.projection or width)
    return (size, need.width if isinstance(need, GradientSketch) else need.projection or width)
