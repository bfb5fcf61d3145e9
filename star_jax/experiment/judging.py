"""How good a model is after a round, and what the base model makes of pool and test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import CandidatePool, Pool
from star_jax.active.query import first_strategy
from star_jax.active.state import LoopState
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example
from star_jax.data.run_data import TokenizedSet, tokenize_examples
from star_jax.evaluation.evaluator import (
    PASSES,
    UNCERTAINTY,
    TestSet,
    accuracy_of_answers,
    evaluate,
    prepare_test_set,
)
from star_jax.experiment.one_run import Run
from star_jax.experiment.setup import ExperimentContext
from star_jax.inference.batched import Logs
from star_jax.models.lora import Adapter
from star_jax.runs.score_store import StoredScores, answers_of, with_answers
from star_jax.tracking.observer import Timed


def judged_set(context: ExperimentContext, tokens: TokenizedSet, shapes: Shapes, pool: Pool | None = None) -> TestSet:
    """Labelled examples in batches, with the kind of answer that is judged.

    Args:
      context: of the experiment.
      tokens: the examples.
      shapes: of batches.
      pool: the examples as they are scored, where they are of a run's pool: what is judged on a closed set then has the
        pool's shapes, and needs no programs of its own.
    """
    config = context.config
    closed: int | CandidatePool | None = None
    if config.evaluation.judges_candidates(config.scoring.answers):
        closed = pool if isinstance(pool, CandidatePool) else config.scoring.batch_size
    return prepare_test_set(context.task, context.encoder, tokens, shapes, closed)


def judge(run: Run, adapter: Adapter, timed: Timed) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and predictions on the test set."""
    context, test = run.context, run.test
    base = _base_measures(context, test.prompts, f"{timed.title}: base model on the test set", answers=True)
    with timed.phase("evaluate", PASSES * len(test.examples), "examples") as tick:
        figures, predictions = evaluate(
            context.model, adapter, test, context.config.evaluation, base=base[UNCERTAINTY], on_batch=tick
        )
    return figures | {"base_accuracy": accuracy_of_answers(test, answers_of(base))}, predictions


def validate(run: Run, adapter: Adapter, examples: Sequence[Example], title: str) -> dict[str, Any]:
    """Accuracy and NLL on the labelled examples that were held out, where there are some."""
    if not examples:
        return {}
    context, config = run.context, run.context.config.evaluation
    tokens = tokenize_examples(context.encoder, examples)
    problem = run.problem
    place = {prompt.id: number for number, prompt in enumerate(problem.prompts)}
    pool = problem.pool
    if isinstance(pool, CandidatePool):
        pool = pool.part([place[example.id] for example in examples])
    held_out = judged_set(context, tokens, problem.shapes, pool)
    unasked = np.zeros(len(examples))  # the base model's uncertainty on them is of no interest
    with context.progress.task(f"{title}: validate", PASSES * len(examples), "examples") as tick:
        figures, _ = evaluate(context.model, adapter, held_out, config, base=unasked, on_batch=tick)
    return {"validation_examples": len(examples)} | {
        f"validation_{name}": figures[name] for name in ("accuracy", "nll")
    }


def with_base(run: Run, state: LoopState, title: str) -> LoopState:
    """The state with the base model's measures, where the coming query needs some that it does not have."""
    asker = run.strategy if state.round else first_strategy(run.context.config)
    # Votes of drawn answers are no measures of the base model's own answer, which is what is kept on disk.
    needs = [] if asker is None else [need for need in asker.measures("base") if not need.of_answers]
    if run.context.config.acquisition.score_at_most is not None:
        return state  # they are computed for what a query scores
    if all(need in state.base for need in needs):
        return state
    with run.context.watch.phase("score"):
        measures = _base_measures(run.context, run.problem.pool, f"{title}: base model on the pool")
    return state._replace(base={**state.base, **{need: jnp.asarray(measures[need.name]) for need in needs}})


def _base_measures(context: ExperimentContext, pool: Pool, title: str, answers: bool = False) -> StoredScores:
    """The base model's measures, from disk or from a pass over the examples; with its answers where they are wanted."""

    def compute(logs: Logs) -> Mapping[str, Any]:
        with context.progress.task(title, pool.size, "examples") as tick:
            scores = score_pool(context.model, context.base_adapter, pool, on_batch=tick, logs=logs)
        return with_answers(scores) if answers else scores.measures

    return context.base.measures(pool, compute)
