"""Tests that an author runs on a strategy of theirs, from a test of their own or from a notebook.

    from star_jax.testing import check_strategy

    def test_mine():
        check_strategy("hardest_of_each_topic")

Shapes: `N` pool, `D` width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Feature, Group, Measure, Probabilities, Targets
from star_jax.acquisition.settings import DETAILS, shape_of
from star_jax.acquisition.strategy import Query, Strategy, check_picks, get_strategy, pick
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError

Array = jax.Array

SIZE, COUNT, QUERIES, WIDTH = 40, 6, 9, 8
"""Pool, picks, queries of a run, and width of an embedding in the checks."""

POOLS = 2
"""Random pools that each clause is checked on."""


class StrategyError(AssertionError):
    """A strategy breaks a clause of the contract; the message says which, and how."""


def check_strategy(
    strategy: str | Strategy, *, options: AcquisitionConfig | None = None, seed: int = 0, draws: bool | None = None
) -> None:
    """Checks that a strategy keeps the contract of `acquisition.strategy`.

    - *picks*: as many unlabelled examples as were asked for, each once; scores, where there are some, one an example.
    - *blind*: it reads nothing but its needs, and no measure of a labelled example, which may be NaN. It is given
      arrays alone, so it cannot know a response, unless it goes and looks for one. Embeddings and gradient sketches of
      labelled examples may be read: they know prompts and the model's own answers.
    - *finite*: its scores are numbers.
    - *deterministic*: the same key gives the same picks, however often it is called and whatever was asked in between.
    - *jit*: compiled, it picks what it picks uncompiled, and one program serves all queries of a run.
    - *equivariant*: in a pool in another order it picks the same examples, where no score stands twice. A strategy that
      draws by place has other draws there, and is left out of this clause.

    Args:
      strategy: a name in the registry, or a strategy.
      options: the acquisition settings, for one that is made from them.
      seed: of the random pools.
      draws: whether it is meant to draw at random, so that picks differ from key to key; found out where None.

    Raises:
      StrategyError: a clause is broken.
      ConfigError: there is no such strategy, or it is none.

    Example:
      >>> check_strategy("star")
    """
    checked = get_strategy(strategy, options) if isinstance(strategy, str) else strategy
    if not isinstance(checked, Strategy):
        raise ConfigError(f"a {type(strategy).__name__} is no strategy; pass the name that it is registered under")
    for number in range(POOLS):
        pool = _random_pool(checked.needs, np.random.default_rng([seed, number]))
        _check_picks(checked, *pool)
        # Before the clauses that compare two calls.
        _check_deterministic(checked, *pool)
        _check_blind(checked, *pool)
        _check_jit(checked, *pool)
        by_chance = _draws(checked, *pool) if draws is None else draws
        if not by_chance:
            _check_no_draws(checked, *pool)
            _check_equivariant(checked, *pool, np.random.default_rng([seed, number, 1]))


Arrays = tuple[np.ndarray, ...]


def _random_pool(needs: Sequence[Feature], rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
    """Features with distinct values, and which examples are unlabelled."""

    def draw(need: Feature) -> np.ndarray:
        if isinstance(need, Group):
            return rng.integers(0, 4, SIZE).astype(np.int32)
        if isinstance(need, Probabilities):
            return rng.dirichlet(np.ones(DETAILS[1]), (SIZE, DETAILS[0])).astype(np.float32)
        if not isinstance(need, Measure):
            return rng.normal(size=shape_of(need, SIZE, WIDTH)).astype(np.float32)
        return (rng.permutation(SIZE) + rng.random(SIZE) / 2).astype(np.float32)

    unlabelled = rng.random(SIZE) < 0.6
    unlabelled[rng.permutation(SIZE)[: 2 * COUNT]] = True
    return tuple(draw(need) for need in needs), unlabelled


def _call(
    strategy: Strategy, features: Arrays, unlabelled: np.ndarray, key: int = 0, index: int = 2
) -> tuple[np.ndarray, np.ndarray | None]:
    query = Query(jnp.asarray(index), QUERIES, COUNT)
    try:
        found = pick(strategy, jax.random.key(key), [*map(jnp.asarray, features)], jnp.asarray(unlabelled), query)
    except StrategyError:
        raise
    except Exception as error:  # the author's own code runs in there, and can fail in any way
        raise StrategyError(f"{strategy.name}: picks: it fails with {type(error).__name__}: {error}") from error
    indices, scores = found
    return np.asarray(indices), None if scores is None else np.asarray(scores)


def _check_picks(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> None:
    indices, scores = _call(strategy, features, unlabelled)
    try:
        check_picks(strategy, indices, unlabelled)
    except ValueError as error:
        raise StrategyError(f"{strategy.name}: picks: {error}") from error
    if scores is not None and not np.isfinite(scores[unlabelled]).all():
        raise StrategyError(f"{strategy.name}: finite: scores of unlabelled examples are not numbers")


def _check_blind(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> None:
    want, _ = _call(strategy, features, unlabelled)
    for value in (np.nan, np.inf, -1e30, 1e30):
        spoilt = []
        for need, feature in zip(strategy.needs, features, strict=True):
            changed = feature.copy()
            if isinstance(need, Measure | Probabilities):
                changed[~unlabelled] = value
            spoilt.append(changed)
        got, _ = _call(strategy, tuple(spoilt), unlabelled)
        if not np.array_equal(got, want):
            raise StrategyError(
                f"{strategy.name}: blind: the picks change when measures of labelled examples become {value}; mask "
                "them with pool.unlabelled"
            )


def _check_deterministic(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> None:
    want, _ = _call(strategy, features, unlabelled)
    again, _ = _call(strategy, features, unlabelled)
    _call(strategy, features, unlabelled, key=7, index=3)
    later, _ = _call(strategy, features, unlabelled)
    if not (np.array_equal(again, want) and np.array_equal(later, want)):
        raise StrategyError(
            f"{strategy.name}: deterministic: the same key and pool gave other picks the second time; draw from the "
            "key alone, and keep nothing between calls"
        )


def _check_jit(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> None:
    traces = []

    def program(key: Array, features: Any, unlabelled: Array, index: Array) -> Any:
        traces.append(index)
        return pick(strategy, key, features, unlabelled, Query(index, QUERIES, COUNT))

    compiled: Callable[..., Any] = jax.jit(program)
    arrays = (tuple(map(jnp.asarray, features)), jnp.asarray(unlabelled))
    for index in range(3):
        want, scores = _call(strategy, features, unlabelled, index=index)
        try:
            got = np.asarray(compiled(jax.random.key(0), *arrays, jnp.asarray(index))[0])
        except Exception as error:  # as in `_call`
            raise StrategyError(
                f"{strategy.name}: jit: it cannot be compiled ({type(error).__name__}: {_said(error)}); "
                "use jax.numpy, and no Python branch on the value of an array"
            ) from error
        # Scores that are equal but for rounding may change places when they are compiled.
        close = scores is not None and _least_gap(scores[unlabelled]) < 1e-5
        if not close and not np.array_equal(got, want):
            raise StrategyError(f"{strategy.name}: jit: compiled it picks {got.tolist()}, uncompiled {want.tolist()}")
    if len(traces) > 1:
        raise StrategyError(f"{strategy.name}: jit: it was traced {len(traces)} times for one run")


def _draws(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> bool:
    return len({tuple(_call(strategy, features, unlabelled, key)[0].tolist()) for key in range(4)}) > 1


def _check_no_draws(strategy: Strategy, features: Arrays, unlabelled: np.ndarray) -> None:
    if _draws(strategy, features, unlabelled):
        raise StrategyError(f"{strategy.name}: deterministic: its picks depend on the key, and it is not meant to draw")


def _check_equivariant(strategy: Strategy, features: Arrays, unlabelled: np.ndarray, rng: np.random.Generator) -> None:
    want, scores = _call(strategy, features, unlabelled)
    if scores is not None and _least_gap(scores[unlabelled]) < 1e-5:
        return  # which of two equal scores comes first is the pool's order
    order = rng.permutation(SIZE)
    moved = tuple(
        feature if isinstance(need, Targets) else feature[order]
        for need, feature in zip(strategy.needs, features, strict=True)
    )
    got, _ = _call(strategy, moved, unlabelled[order])
    if set(order[got].tolist()) != set(want.tolist()):
        raise StrategyError(
            f"{strategy.name}: equivariant: in a pool in another order it picks other examples; let nothing depend on "
            "an example's place"
        )


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _least_gap(values: np.ndarray) -> float:
    return float(np.diff(np.sort(values)).min(initial=np.inf))
