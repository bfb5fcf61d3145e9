"""What an experiment refuses before it starts: settings that contradict each other, the model, or the data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from star_jax.acquisition.settings import check_groups, check_strategy_settings
from star_jax.acquisition.strategy import Strategy
from star_jax.active.budget import check_picks_by_score
from star_jax.active.query import first_strategy
from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.annotators.llm.calls import CALLS_FILE
from star_jax.checkpoints.hub import EMBEDDED
from star_jax.checkpoints.tensor_shapes import projection_shapes
from star_jax.config import ExperimentConfig
from star_jax.data.run_data import RunData
from star_jax.data.skips import is_skip
from star_jax.data.store import FOLDER as TOKENS
from star_jax.data.tasks.task import Task
from star_jax.errors import ConfigError
from star_jax.experiment.plan import named_strategies
from star_jax.models.architecture import TransformerConfig
from star_jax.models.projections import choose_modules
from star_jax.registry import ANNOTATORS
from star_jax.report.places import CURVE, PAGE, check_places
from star_jax.runs.score_store import FOLDER as SCORES


def _check_size_of_queries(config: ExperimentConfig, strategies: Sequence[Strategy]) -> None:
    """Refuses queries that score fewer examples than they are to pick."""
    most, first = config.acquisition.score_at_most, first_strategy(config)
    if most is None:
        return
    asked = {"labels_per_round": any(strategy.needs for strategy in strategies), "initial_labels": first is not None}
    for name, scores in asked.items():
        count = getattr(config.loop, name)
        if scores and most < count:
            raise ConfigError(
                f"acquisition.score_at_most is {most}, and a query picks loop.{name} = {count} of what it scores; "
                "raise the one or lower the other"
            )


def check_experiment(config: ExperimentConfig, strategies: Sequence[Strategy], task: Task) -> None:
    """Settings that contradict each other, or a strategy, or the task: raises `ConfigError`."""
    for strategy in strategies:
        check_strategy_settings(strategy, config)
        check_groups(strategy, task)
        if strategy.detailed and config.scoring.answers != "candidates":
            raise ConfigError(
                f"strategy {strategy.name} needs the probabilities of a closed answer set and scoring.answers is "
                f"{config.scoring.answers}; set it to candidates, or choose another strategy, for example bald"
            )
    _check_size_of_queries(config, strategies)
    if config.acquisition.per_cost:
        first = first_strategy(config)
        for strategy in (*strategies, *(() if first is None else (first,))):
            check_picks_by_score(strategy)
    if config.annotator != "auto":
        ANNOTATORS.get(config.annotator, "annotator")
    replay = config.training.replay
    if replay is not None and replay.startswith(EMBEDDED) and (config.model.path, task.name) != (replay, "skills"):
        raise ConfigError(
            f"training.replay is {replay}, rows of that model's own past, and the run is model {config.model.path} on "
            f"task {task.name}; set training.replay to none and training.replay_rows to 0, or name a file of yours"
        )
    if config.lora.training_dropout != "off" and config.lora.dropout == 0:
        raise ConfigError(
            f"lora.training_dropout is {config.lora.training_dropout} and lora.dropout is 0; "
            f"set lora.dropout above 0 or lora.training_dropout to off"
        )
    if any(is_skip(answer, config.labels.skip) for answer in config.format.answers):
        raise ConfigError(
            f"labels.skip is {config.labels.skip}, which is also one of format.answers; choose another text for it"
        )
    for section, answers in (("scoring", config.scoring.answers), ("evaluation", config.evaluation.answers)):
        if answers == "candidates" and task.candidates is None:
            raise ConfigError(
                f"{section}.answers is candidates, but task {task.name} has no closed answer set; choose generated"
            )


def check_model(config: ExperimentConfig, shape: TransformerConfig) -> None:
    """Limits that the model cannot read, or modules that it does not have: raises `ConfigError`."""
    asked, most = config.data.max_prompt_tokens + config.data.max_response_tokens, shape.max_position_embeddings
    if asked > most:
        raise ConfigError(
            f"data.max_prompt_tokens + data.max_response_tokens is {asked} and the model reads {most} tokens "
            f"(max_position_embeddings); lower one of the two"
        )
    if config.model.adapter is None:
        choose_modules(shape.num_hidden_layers, list(projection_shapes(shape)), config.lora.targets)


def check_data(config: ExperimentConfig, data: RunData) -> None:
    """A budget that is larger than the pool, or gold answers that are not there: raises `ConfigError`."""
    if config.loop.budget > len(data.pool):
        raise ConfigError(
            f"loop asks for {config.loop.budget} labels (initial_labels + (rounds - 1) * labels_per_round) and the "
            f"pool has {len(data.pool)} examples; lower one of the three or enlarge the pool"
        )
    if data.unlabelled and config.scoring.answers == "reference":
        raise ConfigError(
            f"{data.unlabelled} of {len(data.pool)} pool rows in {config.data.train} have no response, and "
            "scoring.answers is reference, which scores gold responses; choose generated"
        )


def check_output_dir(config: ExperimentConfig) -> None:
    """Refuses an output folder in which a run would write over what it reads, or over what is not its own.

    Raises:
      ConfigError: naming the folder and the setting.
    """
    out = Path(config.output_dir)
    for name, folder in (("model.path", config.model.path), ("model.adapter", config.model.adapter)):
        if folder is not None and Path(folder).expanduser().is_dir() and _is_inside(out, folder):
            raise ConfigError(
                f"output_dir is {out}, inside the folder of {name}, which is only read; name another place"
            )
    written = [out / name for name in (LABELS_FILE, CALLS_FILE, PAGE, CURVE, SCORES, TOKENS)]
    written += [out / strategy / f"seed-{seed}" for strategy in named_strategies(config) for seed in config.seeds]
    read = {
        "data.train": config.data.train,
        "data.test": config.data.test,
        "training.replay": config.training.replay,
        "acquisition.target_file": config.acquisition.target_file,
        "model.path": config.model.path,
        "model.adapter": config.model.adapter,
    } | {f"plugins {name}": name for name in config.plugins}
    for setting, source in read.items():
        if source is None or not Path(source).expanduser().exists():
            continue  # a hub name, or what is found missing elsewhere
        for place in written:
            if _is_inside(Path(source).expanduser(), place):
                raise ConfigError(
                    f"{setting} is {source}, which a run with output_dir {out} writes over; copy it elsewhere, or "
                    "choose another output_dir"
                )
    existing = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is no folder" if not existing.is_dir() else "cannot be written to"
        raise ConfigError(f"output_dir is {out}, and {existing} {reason}; choose another --output-dir")
    check_places(out)


def _is_inside(path: str | Path, folder: str | Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(Path(folder).expanduser()))
