"""One query: features, the strategy's picks, the requests that they become, and what comes after them.

Round r ≥ 1 scores the pool with the model of round r − 1, so its query is number t = r − 1. `N` pool, `k` picks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Feature, Measure, Probabilities, Targets
from star_jax.acquisition.pool_scoring import answer_texts
from star_jax.acquisition.selection import uniform
from star_jax.acquisition.strategy import Query, Strategy, check_finite, check_picks, get_strategy, pick
from star_jax.active.budget import by_score_per_cost, expected_costs
from star_jax.active.features import Features, Offer, compute_features
from star_jax.active.pool import available
from star_jax.active.state import Choice, LoopState, Observer, Problem, Unobserved
from star_jax.annotators.annotator import Request
from star_jax.config import ExperimentConfig
from star_jax.data.examples import Prompt

Array = jax.Array

_SUBSET = 3
"""Number of the key that says what a query scores: behind those of selection, scoring and training."""


class QueryKeys(NamedTuple):
    """PRNG keys of a query.

    Attributes:
      select: of the selection.
      score: of the dropout masks.
      subset: of what is scored where that is not everything (`acquisition.score_at_most`).
    """

    select: Array
    score: Array
    subset: Array

    @classmethod
    def of(cls, key: Array, select: Array, score: Array) -> QueryKeys:
        """The two keys that were split off the query's `key`, with the third."""
        return cls(select, score, jax.random.fold_in(key, _SUBSET))


FIRST = {"typiclust": "typiclust", "k_center": "k_center", "base_uncertainty": "base_only"}
"""`loop.initial` -> the strategy that picks the first labels; it needs the base model alone."""


DRAWN = "random"
"""What has picked an example that was drawn."""


def first_strategy(config: ExperimentConfig) -> Strategy | None:
    """What picks the first labels, before there is an adapter; None where they are drawn at random."""
    name = FIRST.get(config.loop.initial)
    return None if name is None else get_strategy(name, config.acquisition)


def picker(config: ExperimentConfig, strategy: Strategy, first: bool) -> str:
    """Name of what picks: the strategy, or before the first training what `loop.initial` says."""
    asker = first_strategy(config) if first else strategy
    return DRAWN if asker is None else asker.name


def requests_of(
    problem: Problem, choice: Choice, strategy: str | None = None, picked_by: str | None = None
) -> list[Request]:
    """What a choice asks to be labelled, first pick first."""
    picked = np.asarray(choice.picked).tolist()
    return [
        replace(_request(problem, choice, index, rank, strategy), picked_by=picked_by)
        for rank, index in enumerate(picked)
    ]


def _request(problem: Problem, choice: Choice, index: int, rank: int, strategy: str | None) -> Request:
    measure = choice.base if choice.full is None else choice.full
    score, uncertainty = (_known(values, index) for values in (choice.scores, measure))
    # The guesses are those at the picks; of what stands in for a skipped one, nothing is known.
    guesses = choice.guesses or ()
    guess = guesses[rank] if rank < len(guesses) else None
    return Request(problem.prompts[index], rank, score, strategy, uncertainty, guess)


def _known(values: Array | None, index: int) -> float | None:
    """The figure of an example; None where it was not scored, as one may be that stands in for a skipped one."""
    figure = np.nan if values is None else float(np.asarray(values)[index])
    return None if np.isnan(figure) else figure


def spare_requests(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    choice: Choice,
    key: Array,
    observer: Observer | None,
) -> Iterator[Request]:
    """What the query of a choice would ask for next, one example after the other, until the pool is used up.

    The query is made again for twice as many, then for four times as many, and so on, which takes few programs; what is
    unlabelled stays the same for it, since scores may be relative to that. An example's turn does not depend on when
    somebody has said which others are to be skipped, and a run that was stopped in between asks for the same. Where the
    query scored only some, the others come behind them, at random.
    """
    asker, name = strategy if state.round else first_strategy(config), strategy.name
    by = picker(config, strategy, first=not state.round)
    keys, features = query_keys(key, state), None if asker is None else _features_of(asker, choice)
    unlabelled = available(state.pool)
    offered = unlabelled if asker is None else what_is_scored(config, asker, unlabelled, keys)
    asked, size, left = np.asarray(choice.picked).tolist(), len(choice.picked), int(np.sum(np.asarray(offered)))
    rank = len(asked)
    while len(asked) < left:
        size = min(2 * size, left)
        if asker is None:
            found = np.asarray(_initial(keys.select, unlabelled, count=size))
        else:
            if features is None:
                offer = Offer(offered, keys.score)
                computed = compute_features(config, asker, problem, state, offer, observer or Unobserved())
                features = tuple(computed.arrays[need] for need in asker.needs)
            query = query_of(config, state, size)
            picked, scores = select(asker, keys.select, features, offered, query, ~unlabelled)
            found = np.asarray(_for_their_cost(config, problem, state, picked, scores, offered))
            check_picks(asker, found, np.asarray(offered))
        before = set(asked)
        fresh = [index for index in found.tolist() if index not in before]
        asked += fresh
        for index in fresh:
            yield replace(_request(problem, choice, index, rank, name), picked_by=by)
            rank += 1
    rest = unlabelled & ~offered
    for index in np.asarray(uniform(keys.subset, rest, int(rest.sum()))).tolist():
        yield replace(_request(problem, choice, index, rank, name), picked_by=DRAWN)
        rank += 1


def _features_of(strategy: Strategy, choice: Choice) -> tuple[Array, ...] | None:
    """All that the strategy needs, where the choice has it: one measure of each model at most, and nothing else."""
    known: dict[Feature, Array | None] = {}
    known |= dict.fromkeys(strategy.measures("base")[:1], choice.base)
    known |= dict.fromkeys(strategy.measures("full")[:1], choice.full)
    features = tuple(values for values in (known.get(need) for need in strategy.needs) if values is not None)
    return features if len(features) == len(strategy.needs) else None


def query_of(config: ExperimentConfig, state: LoopState, count: int) -> Query:
    """Number t = r − 1 in round r; the first labels, which are no query, are picked as by the first one."""
    # At least one query: schedules divide by their number.
    return Query(jnp.asarray(max(state.round - 1, 0)), max(config.loop.rounds - 1, 1), count)


def round_keys(key: Array, state: LoopState) -> Array:
    """Keys of selection, scoring and training."""
    return jax.random.split(jax.random.fold_in(key, state.round), 3)


def query_keys(key: Array, state: LoopState) -> QueryKeys:
    """Keys of a round's query."""
    select_key, score_key, _ = round_keys(key, state)
    return QueryKeys.of(jax.random.fold_in(key, state.round), select_key, score_key)


def what_is_scored(config: ExperimentConfig, strategy: Strategy, unlabelled: Array, keys: QueryKeys) -> Array:
    """What a query scores and picks from: mask `N`.

    Everything that is unlabelled, or `acquisition.score_at_most` of it at random. A strategy that needs no features
    scores nothing, and picks from everything.
    """
    most = config.acquisition.score_at_most
    if most is None or not strategy.needs or int(np.sum(np.asarray(unlabelled))) <= most:
        return unlabelled
    mask = np.zeros(len(unlabelled), bool)
    mask[np.asarray(_initial(keys.subset, unlabelled, count=most))] = True
    return jnp.asarray(mask)


def initial(key: Array, state: LoopState, count: int) -> Choice:
    """A random choice of `count` unlabelled examples."""
    return Choice(_initial(key, available(state.pool), count=count))


def score_and_pick(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    keys: QueryKeys,
    query: Query,
    observer: Observer | None = None,
) -> Choice:
    """Computes the features that the strategy needs, and picks; nothing is read back before the end.

    Args:
      config: the experiment.
      strategy: from the registry.
      problem: pool and model.
      state: with the adapter of a training, unless the strategy needs the base model alone.
      keys: PRNG keys.
      query: which query this is.
      observer: told how far the scoring is.

    Raises:
      ConfigError, ScoreError: as `choose`.
    """
    unlabelled = available(state.pool)
    offered = what_is_scored(config, strategy, unlabelled, keys)
    offer = Offer(offered, keys.score)
    computed = compute_features(config, strategy, problem, state, offer, observer or Unobserved())
    features = tuple(computed.arrays[need] for need in strategy.needs)
    picked, scores = select(strategy, keys.select, features, offered, query, ~unlabelled)
    picked = _for_their_cost(config, problem, state, picked, scores, offered)
    check(strategy, problem.prompts, computed, np.asarray(offered), picked)
    if not strategy.needs:
        return Choice(picked)
    if scores is not None and offered is not unlabelled:
        scores = jnp.where(unlabelled & ~offered, jnp.nan, scores)
    base, full = (
        next((computed.arrays[need] for need in strategy.measures(model)), None) for model in ("base", "full")
    )
    guesses = (
        None if computed.answered is None else answer_texts(problem.encoder, problem.pool, computed.answered, picked)
    )
    return Choice(picked, scores, base, full, computed.response_tokens, computed.base, guesses)


def _for_their_cost(
    config: ExperimentConfig, problem: Problem, state: LoopState, picked: Array, scores: Array | None, offered: Array
) -> Array:
    """The picks, or where `acquisition.per_cost` says so as many with the most score for their cost."""
    if not config.acquisition.per_cost or scores is None:
        return picked
    return by_score_per_cost(scores, expected_costs(config, problem, state), offered, len(picked))


@partial(jax.jit, static_argnames=("strategy",))
def select(
    strategy: Strategy, key: Array, features: tuple[Array, ...], unlabelled: Array, query: Query, labelled: Array
) -> tuple[Array, Array | None]:
    """The strategy's picks by one program; arguments and errors as those of `acquisition.strategy.pick`."""
    return pick(strategy, key, features, unlabelled, query, labelled)


def check(
    strategy: Strategy,
    prompts: Sequence[Prompt],
    computed: Features,
    offered: np.ndarray,
    picked: Array,
) -> None:
    """Refuses features that are not finite, and picks that were not offered.

    Checked before a pick is used, after it was made: features are read back once, not before each step.

    Raises:
      ScoreError: naming the examples.
      ConfigError: naming the strategy.
    """
    names = [prompt.id for prompt in prompts]
    for feature, values in computed.arrays.items():
        if isinstance(feature, Targets):
            check_finite(np.asarray(values), [f"target {number}" for number in range(1, len(values) + 1)])
            continue
        scored = isinstance(feature, Measure | Probabilities)
        read = np.flatnonzero(offered) if scored else np.arange(len(names))
        check_finite(np.asarray(values)[read], [names[place] for place in read.tolist()])
    check_picks(strategy, np.asarray(picked), offered)


@partial(jax.jit, static_argnames=("count",))
def _initial(key: Array, mask: Array, *, count: int) -> Array:
    return uniform(key, mask, count)
