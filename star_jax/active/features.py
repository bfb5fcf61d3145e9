"""The features of a pool that a strategy needs: a pass over it for each way of scoring, and for each model's vectors.

Only what can be picked is scored: shapes stay those of the run, and a pass has fewer batches as labels come in.

What is read of the base model stays the same over a run, and is kept in the loop's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Measure
from star_jax.acquisition.pool_sampling import sample_pool
from star_jax.acquisition.pool_scoring import AnySampling, PoolScores, answered_rows, passes_over, score_pool
from star_jax.acquisition.pools import GeneratedPool, Pool
from star_jax.acquisition.strategy import OF_ONE, Strategy
from star_jax.acquisition.votes import voted
from star_jax.active.posterior import sampling_of
from star_jax.active.state import KeepsScores, LoopState, Observer, Problem
from star_jax.config import ExperimentConfig, LoraConfig
from star_jax.data.batching import Shape
from star_jax.errors import ConfigError
from star_jax.inference.batched import Logs, no_logs
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.gradients import gradient_sketches
from star_jax.inference.sampling import Decoding
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.transformer import LanguageModel

Array = jax.Array

_ANSWERS = 11
"""Number of the key that the full model's answers are drawn with, folded into that of the dropout masks."""

_BASE_ANSWERS = 0
"""Seed of the base model's drawn answers, which stay the same over a run, whichever query asks for them first."""

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
    now = np.zeros(max(map(len, found.values()), default=0), bool)
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


class Watch(NamedTuple):
    """Who is told of each batch, and what keeps the results of a pass as they come.

    Attributes:
      tick: told the number of examples of each batch.
      logs: gives what keeps them.
    """

    tick: Callable[[int], None]
    logs: Logs = no_logs

    def of(self, part: str) -> Watch:
        """The same for a part whose passes are called after it."""
        return Watch(self.tick, lambda name: self.logs(f"{part}-{name}"))


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
        ways = {sampled for sampled in (False, True) if self.measures(sampled)}
        return sorted(ways or ({False} if self.sketches else set()))

    def measures(self, sampled: bool) -> list[Measure]:
        """Those of one answer that the pass with or without samples gives."""
        measures = [need for need in self.needs if isinstance(need, Measure) and not need.of_answers]
        return [need for need in measures if (need.samples and self.stochastic) == sampled]

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
        found = score_pool(problem.model, adapter, problem.pool, **options)
        arrays |= {need: found.measures[need.name] for need in wanted.measures(sampled)}
    # 2. Votes of several drawn answers.
    if wanted.votes:
        ballots = _votes(problem, adapter, wanted, draws, watch)
        arrays |= {need: ballots.measures[need.name] for need in wanted.votes}
        found = found or ballots
    # 3. Vectors.
    rows = PoolRows(problem.tokens, problem.shapes.prompts, problem.pool, found)
    arrays |= pool_vectors(problem.model, adapter, wanted.needs, rows, lora, watch)
    return arrays, found


def _votes(problem: Problem, adapter: Adapter | None, wanted: _Wanted, draws: _Draws, watch: _Watch) -> PoolScores:
    """Measures of several drawn answers, and the one with most votes."""
    if not isinstance(problem.pool, GeneratedPool):
        raise ConfigError(f"answers of a closed set are not drawn, for their distribution is known; choose {OF_ONE}")
    which = wanted.needs[0].model
    key = jax.random.fold_in(draws.key, _ANSWERS) if which == "full" else jax.random.key(_BASE_ANSWERS)
    rows = np.arange(problem.pool.size) if wanted.scored is None else wanted.scored
    options: dict[str, Any] = {"rows": rows, "on_batch": watch.tick, "logs": watch.of(which, False)}
    sampled = sample_pool(problem.model, adapter, problem.pool, key=key, decoding=draws.decoding, **options)
    return voted(sampled, problem.encoder.text, problem.read, rows)


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
    watch: Watch,
) -> dict[Feature, Array]:
    """The embeddings and gradient sketches among the needs, all of one model.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      needs: features; measures among them are left to others.
      rows: prompts, and the model's answers.
      lora: settings of the fresh adapter whose gradients are the base model's, which has none of its own.
      watch: told of batches, and keeps what they give.
    """
    arrays: dict[Feature, Array] = {}
    # 1. Embeddings, one pass for all.
    embeddings = [need for need in needs if isinstance(need, Embedding)]
    if embeddings:
        readouts = [Readout(need.pooling, need.projection) for need in embeddings]
        log = watch.logs("-".join(["embedded", *(f"{pooling}{width or ''}" for pooling, width in readouts)]))
        found = embed_prompts(model, adapter, rows.prompts, rows.shapes, readouts, watch.tick, log)
        arrays |= dict(zip(embeddings, found, strict=True))
    # 2. Gradients of the answers.
    for need in needs:
        if isinstance(need, GradientSketch):
            assert rows.answered is not None
            trained = init_adapter(jax.random.key(_FRESH_SEED), model.params, lora) if adapter is None else adapter
            sequences, shapes = answered_rows(rows.pool, rows.answered), rows.pool.answered_shapes
            log = watch.logs(f"sketched{need.width}")
            arrays[need] = gradient_sketches(model, trained, sequences, shapes, need.width, watch.tick, log)
    return arrays
