"""The features of a pool that a strategy needs: a pass over it for each way of scoring, and for each model's vectors.

Only what can be picked is scored: shapes stay those of the run, and a pass has fewer batches as labels come in.

What is read of the base model stays the same over a run, and is kept in the loop's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Group, Measure, Probabilities
from star_jax.acquisition.pool_sampling import sample_pool
from star_jax.acquisition.pool_scoring import AnySampling, PoolScores, passes_over, response_texts, score_pool
from star_jax.acquisition.pools import GeneratedPool
from star_jax.acquisition.settings import OF_ONE
from star_jax.acquisition.strategy import Strategy
from star_jax.acquisition.votes import voted
from star_jax.active.posterior import sampling_of
from star_jax.active.state import KeepsScores, LoopState, Observer, Problem
from star_jax.active.vectors import PoolRows, Watch, pool_vectors
from star_jax.config import ExperimentConfig, LoraConfig
from star_jax.errors import ConfigError
from star_jax.inference.batched import no_logs
from star_jax.inference.sampling import Decoding
from star_jax.models.lora import Adapter

Array = jax.Array

_ANSWERS = 11
"""Number of the key that the full model's answers are drawn with, folded into that of the dropout masks."""

_BASE_ANSWERS = 0
"""Seed of the base model's drawn answers, which stay the same over a run, whichever query asks for them first."""


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


class Offer(NamedTuple):
    """What a query chooses from.

    Attributes:
      mask: `N` bool, True where an example may be picked: measures are computed there alone.
      key: PRNG key of the dropout masks.
    """

    mask: Array
    key: Array


def compute_features(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    offer: Offer,
    observer: Observer,
) -> Features:
    """Everything that a strategy needs.

    Measures of the full model are NaN, or 0 where they are whole numbers, for what is not offered. Those of the base
    model serve all rounds and are of the whole pool, or, where a query scores a subset, of what was offered in one of
    the queries so far. Vectors are of the whole pool.

    Args:
      config: the experiment; the adapter's settings and those of scoring are read.
      strategy: whose needs are met.
      problem: model and pool.
      state: the adapter of the last training, and what is known of the base model.
      offer: what may be picked.
      observer: told how far the passes over the pool are.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
    """
    base = _of_base(config, strategy, state, offer)
    offered = np.flatnonzero(np.asarray(offer.mask))
    stochastic = strategy.sampled and config.scoring.posterior != "none"
    full = _Wanted(tuple(need for need in strategy.needs if need.model == "full"), offered, stochastic)
    sampling = sampling_of(config, problem, state, offer.key, observer) if stochastic else None
    scoring = config.scoring
    draws = _Draws(offer.key, sampling, Decoding(scoring.samples, scoring.temperature, scoring.top_p))
    with observer.phase("score", sum(_examples(problem, one, draws) for one in (base, full)), "examples") as tick:
        watch = Watch(tick, observer.score_log if isinstance(observer, KeepsScores) else no_logs)
        found, of_base = _of_model(problem, problem.start, base, draws, config.lora, watch.of("base"))
        known = {**state.base, **_joined(state.base, found, base.scored)}
        kept = {need: known[need] for need in strategy.needs if need.model == "base"}
        arrays, answered = _of_model(problem, state.adapter, full, draws, config.lora, watch.of("full"))
    tokens = None if answered is None else answered.measures["response_tokens"]
    if base.scored is not None and len(base.scored) < len(offered):
        of_base = None  # for some that may be picked, it has answered in an earlier query
    return Features({**kept, **arrays}, kept, tokens, of_base if answered is None else answered)


def _of_base(config: ExperimentConfig, strategy: Strategy, state: LoopState, offer: Offer) -> _Wanted:
    """What is not known of the base model yet, and is needed.

    Its measures are computed for the whole pool at once; or, where a query scores a subset, for those of it that no
    earlier query has scored.
    """
    needs = [need for need in strategy.needs if need.model == "base"]
    unknown = tuple(need for need in needs if need not in state.base)
    if config.acquisition.score_at_most is None:
        return _Wanted(unknown, None)
    measures = tuple(need for need in needs if isinstance(need, Measure))
    known = np.logical_and.reduce([_known(state.base.get(need), offer) for need in measures])
    missing = np.asarray(offer.mask) & ~known
    vectors = tuple(need for need in unknown if not isinstance(need, Measure))
    return _Wanted((*(measures if missing.any() else ()), *vectors), np.flatnonzero(missing))


def _known(values: Array | None, offer: Offer) -> np.ndarray:
    """Where a measure was computed, `N` bool: elsewhere it is NaN, or 0 where it counts tokens."""
    if values is None:
        return np.zeros(len(offer.mask), bool)
    found = np.asarray(values)
    return ~np.isnan(found) if np.issubdtype(found.dtype, np.inexact) else found > 0


def _joined(
    before: Mapping[Feature, Array], found: Mapping[Feature, Array], scored: np.ndarray | None
) -> dict[Feature, Array]:
    """What was found, with the measures of earlier queries where nothing was scored now."""
    if scored is None:
        return dict(found)
    now = np.zeros(max([len(values) for need, values in found.items() if isinstance(need, Measure)], default=0), bool)
    now[scored] = True
    return {
        need: jnp.where(now, values, before[need]) if isinstance(need, Measure) and need in before else values
        for need, values in found.items()
    }


class _Draws(NamedTuple):
    """How samples and answers are drawn."""

    key: Array
    sampling: AnySampling | None
    decoding: Decoding

    def way(self, sampled: bool) -> AnySampling | None:
        return self.sampling if sampled else None


class _Wanted(NamedTuple):
    """Features of one model that are to be computed, the examples whose measures are wanted (None for all), and whether
    those of samples come from samples; else the pass without noise stands for them."""

    needs: tuple[Feature, ...]
    chosen: np.ndarray | None
    stochastic: bool = False

    @property
    def sketches(self) -> list[GradientSketch]:
        return [need for need in self.needs if isinstance(need, GradientSketch)]

    @property
    def embedded(self) -> bool:
        return any(isinstance(need, Embedding) for need in self.needs)

    @property
    def scored(self) -> np.ndarray | None:
        """The examples that are answered and scored: all of them where sketches are made of the answers."""
        return None if self.sketches else self.chosen

    @property
    def ways(self) -> list[bool]:
        """The passes that answer and score: with samples, without, or both. A sketch is of an answer."""
        ways = {sampled for sampled in (False, True) if self.measures(sampled)} | {True for _ in self.details}
        return sorted(ways or ({False} if self.sketches or Group("answer") in self.needs else set()))

    def measures(self, sampled: bool) -> list[Measure]:
        """Those of one answer that the pass with or without samples gives."""
        measures = [need for need in self.needs if isinstance(need, Measure) and not need.of_answers]
        return [need for need in measures if (need.samples and self.stochastic) == sampled]

    @property
    def details(self) -> list[Probabilities]:
        """What the pass with samples gives besides."""
        return [need for need in self.needs if isinstance(need, Probabilities)]

    @property
    def votes(self) -> list[Measure]:
        """Those of several drawn answers."""
        return [need for need in self.needs if isinstance(need, Measure) and need.of_answers]


def _examples(problem: Problem, wanted: _Wanted, draws: _Draws) -> int:
    """How many examples all passes go through together, as `_of_model` counts them."""
    size = problem.pool.size
    scored = size if wanted.scored is None else len(wanted.scored)
    passes = sum(passes_over(problem.pool, draws.way(sampled)) for sampled in wanted.ways) + bool(wanted.votes)
    return passes * scored + (wanted.embedded + len(wanted.sketches)) * size


def _of_model(
    problem: Problem,
    adapter: Adapter | None,
    wanted: _Wanted,
    draws: _Draws,
    lora: LoraConfig,
    watch: Watch,
) -> tuple[dict[Feature, Array], PoolScores | None]:
    """Features of one of the two models, and its answers where it gave some."""
    arrays: dict[Feature, Array] = {}
    found: PoolScores | None = None
    # 1. Measures, a pass for each way of scoring.
    for sampled in wanted.ways:
        options: dict[str, Any] = {"key": draws.key, "sampling": draws.way(sampled), "rows": wanted.scored}
        options |= {"on_batch": watch.tick, "logs": watch.of("samples" if sampled else "plain").logs}
        details = wanted.details if sampled else []
        found = score_pool(problem.model, adapter, problem.pool, **options, detailed=bool(details))
        arrays |= {need: found.measures[need.name] for need in wanted.measures(sampled)}
        arrays |= {need: found.probabilities for need in details if found.probabilities is not None}
    # 2. Votes of several drawn answers.
    if wanted.votes:
        ballots = _votes(problem, adapter, wanted, draws, watch)
        arrays |= {need: ballots.measures[need.name] for need in wanted.votes}
        found = found or ballots
    # 3. Groups.
    groups = [need for need in wanted.needs if isinstance(need, Group)]
    arrays |= {need: jnp.asarray(_group_numbers(need, problem, found, wanted.scored)) for need in groups}
    # 4. Vectors.
    rows = PoolRows(problem.tokens, problem.shapes.prompts, problem.pool, found, problem.targets)
    arrays |= pool_vectors(problem.model, adapter, wanted.needs, rows, lora, watch)
    return arrays, found


def _group_numbers(need: Group, problem: Problem, found: PoolScores | None, scored: np.ndarray | None) -> np.ndarray:
    """Numbers `N` int32 of groups, in the order of their names."""
    size = problem.pool.size
    if need.by == "data":
        return np.unique([problem.group(prompt) for prompt in problem.prompts], return_inverse=True)[1].astype(np.int32)
    assert found is not None
    rows, numbers = np.arange(size) if scored is None else scored, np.zeros(size, np.int32)
    texts = response_texts(problem.encoder, problem.pool, found, rows)
    names = [text if (answer := problem.read(text)) is None else answer for text in texts]
    numbers[rows] = np.unique(names, return_inverse=True)[1]
    return numbers


def _votes(problem: Problem, adapter: Adapter | None, wanted: _Wanted, draws: _Draws, watch: Watch) -> PoolScores:
    """Measures of several drawn answers, and the one with most votes."""
    if not isinstance(problem.pool, GeneratedPool):
        raise ConfigError(f"answers of a closed set are not drawn, for their distribution is known; choose {OF_ONE}")
    which = wanted.needs[0].model
    key = jax.random.fold_in(draws.key, _ANSWERS) if which == "full" else jax.random.key(_BASE_ANSWERS)
    rows = np.arange(problem.pool.size) if wanted.scored is None else wanted.scored
    options: dict[str, Any] = {"rows": rows, "on_batch": watch.tick, "logs": watch.of("plain").logs}
    sampled = sample_pool(problem.model, adapter, problem.pool, key=key, decoding=draws.decoding, **options)
    return voted(sampled, problem.encoder.text, problem.read, rows)
