"""Which strategies an experiment runs where nobody has said, and how many labels it may ask a person for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from star_jax.config import AUTO, ExperimentConfig
from star_jax.data.run_data import RunData

COMPARED = ("star", "random")
"""What runs on a labelled pool: the method, and what it is compared with."""


def named_strategies(config: ExperimentConfig) -> tuple[str, ...]:
    """The strategies that a run may have, before it is known whether somebody has to label."""
    return COMPARED if config.strategies == (AUTO,) else config.strategies


def chosen_strategies(config: ExperimentConfig, data: Mapping[int, RunData]) -> tuple[str, ...]:
    """Names of the strategies to run.

    Where a person has to label and has not asked for a comparison, none is made: its labels would be paid for too.
    What an earlier release has begun in the output folder is gone on with.

    Args:
      config: the experiment.
      data: of each seed.
    """
    if config.strategies != (AUTO,):
        return config.strategies
    if not any(one.unlabelled for one in data.values()):
        return COMPARED
    first, *others = COMPARED
    return (first, *(name for name in others if any(Path(config.output_dir).glob(f"{name}/seed-*/config.yaml"))))


def most_labels(config: ExperimentConfig, strategies: Sequence[str], data: Mapping[int, RunData]) -> int:
    """The most labels that all runs together may ask for, those included that the table has already.

    The first batch of a seed is the same for all strategies, and no example is asked for twice.
    """
    later = config.loop.budget - config.loop.initial_labels
    asked = config.loop.initial_labels + len(strategies) * later
    open_ids = {
        seed: {prompt.id for prompt in one.pool} - one.labels.keys() - one.skipped for seed, one in data.items()
    }
    return min(sum(min(asked, len(ids)) for ids in open_ids.values()), len(set().union(*open_ids.values())))


def said_of_labels(config: ExperimentConfig, strategies: Sequence[str], data: Mapping[int, RunData]) -> str | None:
    """What a person should know before the first label; None where nobody is asked."""
    if config.annotator in ("oracle", "simulated") or not any(one.unlabelled for one in data.values()):
        return None
    loop = config.loop
    each = f"{loop.initial_labels} + {loop.rounds - 1} x {loop.labels_per_round}"
    seeds = f" and {len(data)} seeds" if len(data) > 1 else ""
    said = (
        f"asks for at most {most_labels(config, strategies, data)} labels altogether, for {', '.join(strategies)}"
        f"{seeds} ({each} a run"
    )
    said += ", the first batch shared)" if len(strategies) > 1 else ")"
    if config.strategies == (AUTO,) and len(strategies) < len(COMPARED):
        more = most_labels(config, COMPARED, data)
        said += f"; --strategies {','.join(COMPARED)} compares and asks for at most {more}"
    return said
