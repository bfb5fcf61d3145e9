"""One program of a plan, run on this machine on made-up tokens: what it really takes.

Rows are as long as lets them fill the batch, and answers go on to their limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from star_jax.acquisition.pool_scoring import Sampling, score_pool
from star_jax.acquisition.pools import GeneratedPool, Pool, proposed_pool
from star_jax.config import ExperimentConfig
from star_jax.data.bucketing import StepLadder
from star_jax.data.tokenization import TokenizedExample
from star_jax.models.lora import init_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import data_mesh
from star_jax.planning.plan import Plan
from star_jax.planning.programs import Program
from star_jax.planning.time import ideal
from star_jax.planning.work import sizes_of, work_of
from star_jax.training.trainer import TrainingRows, fit

BATCHES = 4
"""That are run; the time is that of those behind the first, before which a program is compiled."""

NEVER = (-1,)
"""No token, so that no answer ends."""

TRIED = ("score", "train", "generate")
"""Kinds of programs that can be tried; scoring, which takes least, is tried first."""


class Trial(NamedTuple):
    """A program, what it is run with, and who is told of each batch."""

    program: Program
    model: LanguageModel
    config: ExperimentConfig
    on_batch: Callable[[int], None]


def seconds_of_batch(program: Program, model: LanguageModel, config: ExperimentConfig) -> float:
    """Seconds that a batch takes here, one behind the other.

    Args:
      program: of a kind that is `TRIED`, for as many devices as there are.
      model: with its weights.
      config: the experiment.
    """
    ends: list[float] = []
    _RUN[program.kind](Trial(program, model, config, lambda count: ends.append(time.perf_counter())))
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def calibration(plan: Plan, model: LanguageModel) -> tuple[Program, float]:
    """The program that is tried, and its time here over that at the peaks of the machine.

    It is one of the first kind of `TRIED` that the plan has.
    """
    config, programs = plan.experiment.config, [entry.program for entry in plan.entries]
    program = min((one for one in programs if one.kind in TRIED), key=lambda one: TRIED.index(one.kind))
    return program, seconds_of_batch(program, model, config) / ideal_seconds(plan, program)


def ideal_seconds(plan: Plan, program: Program) -> float:
    """What a batch would take at the peaks of the machine, its answers as long as the limit."""
    sizes = sizes_of(plan.experiment.config, plan.experiment.shape)
    work = work_of(program, sizes, plan.experiment.config, plan.mesh, float(program.written[1]))
    return ideal(work, plan.machine.chip, sizes.shape.dtype == "float32")


def _score(trial: Trial) -> None:
    program, config = trial.program, trial.config
    sampling = None
    if program.samples > 1:
        sampling = Sampling(program.samples, config.lora.dropout, config.scoring.dropout)
    _pass(trial, proposed_pool(_examples(trial), [program.shape]), sampling)


def _generate(trial: Trial) -> None:
    shapes = (trial.program.shape,)
    prompts = [row.tokens for row in _examples(trial)]
    _pass(trial, GeneratedPool(prompts, shapes, trial.program.written[1], NEVER, shapes), None)


def _pass(trial: Trial, pool: Pool, sampling: Sampling | None) -> None:
    model = trial.model
    adapter = init_adapter(jax.random.key(0), model.params, trial.config.lora)
    score_pool(model, adapter, pool, key=jax.random.key(0), sampling=sampling, on_batch=trial.on_batch)


def _train(trial: Trial) -> None:
    shape, config = trial.program.shape, trial.config
    rows = TrainingRows(_examples(trial), [], StepLadder((shape,), (shape,)))
    size = shape.rows * data_mesh().size
    training = replace(config.training, batch_size=size, epochs=1, replay=None, replay_rows=0)
    fit(jax.random.key(0), trial.model, rows, config.lora, training, on_step=trial.on_batch)


_RUN = {"score": _score, "train": _train, "generate": _generate}


def _examples(trial: Trial) -> Sequence[TokenizedExample]:
    """Rows that fill the batches, with as many predicted tokens as the program has."""
    rows, width, capacity = trial.program.shape
    length = min(width, capacity // rows)
    answer = max(1, min(length - 1, round(trial.program.predicted / rows)))
    count = BATCHES * rows * data_mesh().size
    tokens = np.random.default_rng(0).integers(0, trial.model.config.vocab_size, (count, length), np.int32)
    return [TokenizedExample(row, length - answer) for row in tokens]
