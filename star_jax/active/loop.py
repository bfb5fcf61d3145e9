"""STAR's loop: `init`, and `step`, which is `choose` and `learn`. The only wiring there is.

`choose` scores the pool and picks; `learn` gets labels for what was picked and trains. A shell that has to wait for
labels keeps what was chosen in between.

Round 0 labels a random initial set. Round r ≥ 1 scores the pool with the model of round r − 1, so its query is
number t = r − 1. Every key is folded from the run's key and the round, and the adapter is trained anew each
round, so a run can be taken up after any round and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import Pool, Sampling, passes_over, score_pool
from star_jax.acquisition.selection import uniform
from star_jax.acquisition.strategies import Strategy, acquire, check_finite, resolve
from star_jax.active.pool import PoolState, available, init_pool, label
from star_jax.annotators.oracle import Annotator
from star_jax.config import AcquisitionConfig, ExperimentConfig
from star_jax.data.batching import Shape
from star_jax.data.examples import Example, Prompt
from star_jax.data.splits import hold_out
from star_jax.data.tokenization import Encoder, TokenizedExample
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.training.trainer import fit

Array = jax.Array


class Observer(Protocol):
    """Watches the phases of a round: `phase(name, total, unit)` gives the function that counts what is done."""

    def phase(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a phase. Those of the loop are `score` and `train`; a shell may have others."""
        ...


class Unobserved:
    """Watches nothing."""

    def phase(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A phase nobody counts."""
        return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Problem:
    """What does not change from round to round.

    Attributes:
      model: the frozen base model.
      encoder: tokenizer, format and limits.
      prompts: the pool, sorted by id; ties between scores go to the earlier one.
      pool: the same, tokenised, with the kind of answer that is scored.
      shapes: of training steps.
      annotator: who labels what is picked.
      replay: tokenised rows mixed into training.
      start: an adapter the user starts from, part of the base model and of every training's beginning; None for none.
    """

    model: LanguageModel
    encoder: Encoder
    prompts: Sequence[Prompt]
    pool: Pool
    shapes: Sequence[Shape]
    annotator: Annotator
    replay: Sequence[TokenizedExample] = ()
    start: Adapter | None = None


class LoopState(NamedTuple):
    """What the next step needs.

    Attributes:
      round: trainings done.
      pool: what is labelled.
      labels: index in the pool -> response, for everything labelled so far; each was asked for once.
      adapter: of the last training; None before the first.
      base: `N` the strategy's measure under the base model, on its own responses; computed at most once.
    """

    round: int
    pool: PoolState
    labels: Mapping[int, str]
    adapter: Adapter | None = None
    base: Array | None = None


class RoundInfo(NamedTuple):
    """What a person wants to see of a round.

    Attributes:
      picked: `k` indices labelled in this round, first pick first.
      labelled: labels bought so far.
      train_loss: mean cross-entropy of the last epoch, nats a token.
      scores: `N` acquisition scores; None where none were computed.
      base: `N` the base model's measure, or None.
      full: `N` the full model's measure, or None.
      response_tokens: `N` tokens of the responses the full model was scored on, or None.
      validation: labelled examples that were not trained on.
    """

    picked: np.ndarray
    labelled: int
    train_loss: float
    scores: np.ndarray | None = None
    base: np.ndarray | None = None
    full: np.ndarray | None = None
    response_tokens: np.ndarray | None = None
    validation: Sequence[Example] = ()


class Query(NamedTuple):
    """The outcome of scoring and selection: see `RoundInfo`; `picked` `k`, the others `N` or None."""

    picked: Array
    scores: Array | None = None
    base: Array | None = None
    full: Array | None = None
    response_tokens: Array | None = None


def init(pool_size: int) -> LoopState:
    """Before the first round."""
    return LoopState(0, init_pool(pool_size), {})


def step(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer | None = None,
) -> tuple[LoopState, RoundInfo]:
    """One round: query, label, train.

    Args:
      config: the experiment.
      strategy: from the registry.
      problem: pool, model, annotator.
      state: after the round before.
      key: of the whole run; the round is folded in.
      observer: told what is going on.

    Returns:
      The state after this round, and what happened.

    Raises:
      as `choose` and `learn`.
    """
    return learn(config, problem, state, choose(config, strategy, problem, state, key, observer), key, observer)


def choose(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer | None = None,
) -> Query:
    """The first half of a round: what to label next. Arguments as in `step`.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
      ScoreError: a score is not finite; the ids are named.
    """
    select_key, score_key, _ = _round_keys(key, state)
    if state.round == 0:
        return Query(_initial(select_key, available(state.pool), count=config.loop.initial_labels))
    return _query(config, strategy, problem, state, select_key, score_key, observer or Unobserved())


def learn(
    config: ExperimentConfig,
    problem: Problem,
    state: LoopState,
    query: Query,
    key: Array,
    observer: Observer | None = None,
) -> tuple[LoopState, RoundInfo]:
    """The second half of a round: labels for what was chosen, and a training on all of them.

    Args:
      config, problem, state, key, observer: as in `step`.
      query: what `choose` returned for this state.

    Raises:
      LabelsNeeded: the annotator waits for a person; the same call later goes on.
      FloatingPointError: training diverged.
    """
    _, _, train_key = _round_keys(key, state)
    picked = np.asarray(query.picked)
    # From the host, so that no program of a later round is compiled again for where the scores lie.
    pool = label(state.pool, jnp.asarray(picked), state.round)
    answers = problem.annotator.label([problem.prompts[i] for i in picked.tolist()])
    bought = zip(picked.tolist(), (answer.response for answer in answers), strict=True)
    labels = dict(sorted([*state.labels.items(), *bought]))
    examples = [Example(problem.prompts[index], response) for index, response in labels.items()]
    training, validation = hold_out(examples, config.training.validation_fraction)
    with (observer or Unobserved()).phase("train", len(training) * config.training.epochs, "examples") as tick:
        adapter, train_loss = fit(
            train_key,
            problem.model,
            problem.encoder.examples(training),
            problem.replay,
            shapes=problem.shapes,
            lora=config.lora,
            config=config.training,
            start=problem.start,
            on_step=tick,
        )
    scores, base, full, tokens = (None if leaf is None else np.asarray(leaf) for leaf in query[1:])
    info = RoundInfo(picked, len(examples), train_loss, scores, base, full, tokens, validation)
    kept = query.base if query.base is not None else state.base
    return LoopState(state.round + 1, pool, labels, adapter, kept), info


def _round_keys(key: Array, state: LoopState) -> Array:
    """Keys of selection, scoring and training."""
    return jax.random.split(jax.random.fold_in(key, state.round), 3)


def _query(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    select_key: Array,
    score_key: Array,
    observer: Observer,
) -> Query:
    """Scores the pool as far as the strategy needs it, and picks; nothing is read back before the end."""
    resolved = resolve(strategy, config.acquisition)
    size = len(problem.prompts)
    base, full, tokens = None, None, None
    sampling = None
    if resolved.needs_full and resolved.monte_carlo:
        sampling = Sampling(config.scoring.mc_samples, config.lora.dropout, config.scoring.dropout)
    passes = int(resolved.needs_base and state.base is None)
    passes += passes_over(problem.pool, sampling) if resolved.needs_full else 0
    with observer.phase("score", passes * size, "examples") as tick:
        if resolved.needs_base:
            assert resolved.measure is not None
            base = state.base
            if base is None:
                base = score_pool(problem.model, problem.start, problem.pool, on_batch=tick).measures[resolved.measure]
        if resolved.needs_full:
            assert resolved.measure is not None
            full_scores = score_pool(
                problem.model, state.adapter, problem.pool, key=score_key, sampling=sampling, on_batch=tick
            )
            full, tokens = full_scores.measures[resolved.measure], full_scores.measures["response_tokens"]
        picked, scores = _acquire(
            strategy,
            config.acquisition,
            select_key,
            base,
            full,
            available(state.pool),
            jnp.asarray(state.round - 1),
            queries=config.loop.rounds - 1,
            count=config.loop.labels_per_round,
        )
    if resolved.measure is None:
        return Query(picked)
    unlabelled = np.flatnonzero(np.asarray(available(state.pool))).tolist()
    ids = [problem.prompts[i].id for i in unlabelled]
    for measure in (base, full):
        if measure is not None:
            # Checked before the pick is used, after it was made: a score is read back once, not before each step.
            check_finite(np.asarray(measure)[unlabelled], ids)
    return Query(picked, scores, base, full, tokens)


@partial(jax.jit, static_argnames=("count",))
def _initial(key: Array, mask: Array, *, count: int) -> Array:
    return uniform(key, mask, count)


@partial(jax.jit, static_argnames=("strategy", "config", "queries", "count"))
def _acquire(
    strategy: Strategy,
    config: AcquisitionConfig,
    key: Array,
    base: Array | None,
    full: Array | None,
    mask: Array,
    query_index: Array,
    *,
    queries: int,
    count: int,
) -> tuple[Array, Array]:
    return acquire(strategy, config, key, base, full, mask, query_index, queries, count)
