"""The features of a pool that a strategy needs, a pass over the pool for each way of scoring and for each embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from star_jax.acquisition.pool_scoring import Sampling, passes_over, score_pool
from star_jax.acquisition.strategy import Embedding, Feature, Measure, Strategy
from star_jax.active.state import LoopState, Observer, Problem
from star_jax.config import ExperimentConfig
from star_jax.inference.features import embed_prompts

Array = jax.Array


class Features(NamedTuple):
    """Features of a pool.

    Attributes:
      arrays: feature -> `N` or `N×D`.
      base: name -> `N`, the base model's measures among them.
      response_tokens: `N` tokens of the responses that the full model was scored on, or None.
    """

    arrays: Mapping[Feature, Array]
    base: Mapping[str, Array]
    response_tokens: Array | None = None


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
      config: the experiment; the number of samples and the dropout are read.
      strategy: whose needs are met.
      problem: model and pool.
      state: the adapter of the last training, and the measures of the base model that are known.
      key: PRNG key of the dropout masks.
      observer: told how far the passes over the pool are.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
    """
    size, pool = len(problem.prompts), problem.pool
    base = [need.name for need in strategy.measures("base") if need.name not in state.base]
    full = {need.samples for need in strategy.measures("full")}
    embeddings = [need for need in strategy.needs if isinstance(need, Embedding)]
    sampling = Sampling(config.scoring.mc_samples, config.lora.dropout, config.scoring.dropout)
    ways = {sampled: sampling if sampled else None for sampled in sorted(full)}
    passes = bool(base) + sum(passes_over(pool, way) for way in ways.values()) + len(embeddings)
    arrays: dict[Feature, Array] = {}
    tokens = None
    with observer.phase("score", passes * size, "examples") as tick:
        # 1. The base model's measures: those that are known, or all from one pass.
        known = dict(state.base)
        if base:
            known |= score_pool(problem.model, problem.start, pool, on_batch=tick).measures
        kept = {need.name: known[need.name] for need in strategy.measures("base")}
        arrays |= {need: kept[need.name] for need in strategy.measures("base")}
        # 2. The full model's, from a pass for each way of scoring.
        for sampled, way in ways.items():
            found = score_pool(problem.model, state.adapter, pool, key=key, sampling=way, on_batch=tick).measures
            tokens = found["response_tokens"]
            arrays |= {
                Measure(need.name, "full", sampled): found[need.name]
                for need in strategy.measures("full")
                if need.samples == sampled
            }
        # 3. Embeddings.
        for need in embeddings:
            adapter = problem.start if need.model == "base" else state.adapter
            shapes = problem.shapes.prompts
            arrays[need] = embed_prompts(
                problem.model, adapter, problem.tokens, shapes, need.pooling, projection=need.projection, on_batch=tick
            )
    return Features(arrays, kept, tokens)
