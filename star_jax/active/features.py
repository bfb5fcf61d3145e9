"""The features of a pool that a strategy needs: a pass over it for each way of scoring, and for each model's vectors.

What is read of the base model stays the same over a run, and is kept in the loop's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Measure
from star_jax.acquisition.pool_scoring import PoolScores, Sampling, answered_rows, passes_over, score_pool
from star_jax.acquisition.pools import Pool
from star_jax.acquisition.strategy import Strategy
from star_jax.active.state import LoopState, Observer, Problem
from star_jax.config import ExperimentConfig, LoraConfig
from star_jax.data.batching import Shape
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.gradients import gradient_sketches
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.transformer import LanguageModel

Array = jax.Array

_FRESH_SEED = 0
"""Seed of the fresh adapter whose gradients are the base model's, where a run does not start from one."""


class Features(NamedTuple):
    """Features of a pool.

    Attributes:
      arrays: feature -> `N`, `N×D` or `N×W`.
      base: those of the base model, for the state to keep.
      response_tokens: `N` tokens of the responses that the full model was scored on, or None.
      answered: the full model's answers, or else the base model's; None where neither gave any for this.
    """

    arrays: Mapping[Feature, Array]
    base: Mapping[Feature, Array]
    response_tokens: Array | None = None
    answered: PoolScores | None = None


def compute_features(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer,
) -> Features:
    """Everything that a strategy needs.

    Args:
      config: the experiment; the adapter's settings and those of scoring are read.
      strategy: whose needs are met.
      problem: model and pool.
      state: the adapter of the last training, and what is known of the base model.
      key: PRNG key of the dropout masks.
      observer: told how far the passes over the pool are.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
    """
    unknown = [need for need in strategy.needs if need not in state.base]
    base, full = ([need for need in unknown if need.model == model] for model in ("base", "full"))
    draws = _Draws(key, Sampling(config.scoring.mc_samples, config.lora.dropout, config.scoring.dropout))
    passes = sum(_passes(problem, needs, draws) for needs in (base, full))
    with observer.phase("score", passes * len(problem.prompts), "examples") as tick:
        found, of_base = _of_model(problem, problem.start, base, draws, config.lora, tick)
        known = {**state.base, **found}
        kept = {need: known[need] for need in strategy.needs if need.model == "base"}
        arrays, answered = _of_model(problem, state.adapter, full, draws, config.lora, tick)
    tokens = None if answered is None else answered.measures["response_tokens"]
    return Features({**kept, **arrays}, kept, tokens, of_base if answered is None else answered)


class _Draws(NamedTuple):
    """How Monte-Carlo samples are drawn."""

    key: Array
    sampling: Sampling

    def way(self, sampled: bool) -> Sampling | None:
        return self.sampling if sampled else None


def _ways(needs: Sequence[Feature]) -> list[bool]:
    """The passes that answer and score: with samples, without, or both. A sketch is of an answer."""
    ways = {need.samples for need in needs if isinstance(need, Measure)}
    if not ways and any(isinstance(need, GradientSketch) for need in needs):
        ways = {False}
    return sorted(ways)


def _passes(problem: Problem, needs: Sequence[Feature], draws: _Draws) -> int:
    """How often the pool is gone through, as `_of_model` does."""
    scored = sum(passes_over(problem.pool, draws.way(sampled)) for sampled in _ways(needs))
    embedded = any(isinstance(need, Embedding) for need in needs)
    return scored + embedded + sum(isinstance(need, GradientSketch) for need in needs)


def _of_model(
    problem: Problem,
    adapter: Adapter | None,
    needs: Sequence[Feature],
    draws: _Draws,
    lora: LoraConfig,
    tick: Callable[[int], None],
) -> tuple[dict[Feature, Array], PoolScores | None]:
    """Features of one of the two models, and its answers where it gave some."""
    arrays: dict[Feature, Array] = {}
    scored: PoolScores | None = None
    # 1. Measures, a pass for each way of scoring.
    for sampled in _ways(needs):
        sampling = draws.way(sampled)
        scored = score_pool(problem.model, adapter, problem.pool, key=draws.key, sampling=sampling, on_batch=tick)
        measures = [need for need in needs if isinstance(need, Measure) and need.samples == sampled]
        arrays |= {need: scored.measures[need.name] for need in measures}
    # 2. Vectors.
    rows = PoolRows(problem.tokens, problem.shapes.prompts, problem.pool, scored)
    arrays |= pool_vectors(problem.model, adapter, needs, rows, lora, tick)
    return arrays, scored


class PoolRows(NamedTuple):
    """What vectors are made from.

    Attributes:
      prompts: tokens of each.
      shapes: of batches of prompts.
      pool: prompts with the kind of answer that is scored.
      answered: what the model answered; None where no gradient is asked for.
    """

    prompts: Sequence[np.ndarray]
    shapes: Sequence[Shape]
    pool: Pool
    answered: PoolScores | None


def pool_vectors(
    model: LanguageModel,
    adapter: Adapter | None,
    needs: Sequence[Feature],
    rows: PoolRows,
    lora: LoraConfig,
    on_batch: Callable[[int], None],
) -> dict[Feature, Array]:
    """The embeddings and gradient sketches among the needs, all of one model.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      needs: features; measures among them are left to others.
      rows: prompts, and the model's answers.
      lora: settings of the fresh adapter whose gradients are the base model's, which has none of its own.
      on_batch: told the number of examples of each batch.
    """
    arrays: dict[Feature, Array] = {}
    # 1. Embeddings, one pass for all.
    embeddings = [need for need in needs if isinstance(need, Embedding)]
    if embeddings:
        readouts = [Readout(need.pooling, need.projection) for need in embeddings]
        found = embed_prompts(model, adapter, rows.prompts, rows.shapes, readouts, on_batch)
        arrays |= dict(zip(embeddings, found, strict=True))
    # 2. Gradients of the answers.
    for need in needs:
        if isinstance(need, GradientSketch):
            assert rows.answered is not None
            trained = init_adapter(jax.random.key(_FRESH_SEED), model.params, lora) if adapter is None else adapter
            sequences, shapes = answered_rows(rows.pool, rows.answered), rows.pool.answered_shapes
            arrays[need] = gradient_sketches(model, trained, sequences, shapes, need.width, on_batch)
    return arrays
