"""What a strategy is: the features it needs, and a function that picks from them. The protocol, and no strategy.

A strategy sees arrays over the pool and the mask of what is unlabelled, never a response. The driver computes the
features, calls the strategy inside `jit`, and takes the picks. Feature classes are keys: a strategy names
`Measure("token_entropy")` among its `needs` and reads `pool[Measure("token_entropy")]`.

Shapes: `N` pool, `D` width of an embedding, `k` picks.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from star_jax.acquisition.needs import Feature, Measure, Probabilities, Targets, Which
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError, ScoreError
from star_jax.registry import STRATEGIES


@dataclass(frozen=True)
class PoolFeatures:
    """What a strategy sees of the pool.

    Attributes:
      unlabelled: `N` bool, True where an example may be picked. Measures elsewhere mean nothing, and may be NaN;
        embeddings and sketches are there for all.
      features: an array for each feature of the strategy's `needs`.
      settled: `N` bool, True where an example has a label or has been skipped; None where that is all that is not
        unlabelled. A query that scores a part of the pool offers that part as `unlabelled`.
    """

    unlabelled: Array
    features: Mapping[Feature, Array]
    settled: Array | None = None

    def __getitem__(self, feature: Any) -> Array:
        """The array of a feature.

        Raises:
          ConfigError: the strategy does not name it among its needs.
        """
        if feature not in self.features:
            raise ConfigError(f"a strategy reads {feature}, which is not among its needs; add it there")
        return self.features[feature]

    @property
    def labelled(self) -> Array:
        """`N` bool, True where an example has a label or has been skipped: what a batch need not cover again."""
        return ~self.unlabelled if self.settled is None else self.settled

    @property
    def size(self) -> int:
        """N."""
        return self.unlabelled.shape[0]


@struct.dataclass
class Query:
    """Which query this is.

    Attributes:
      index: scalar t = 0, 1, …, the queries made before; traced, so that one program serves a run.
      total: T, the queries that the run makes altogether; static.
      count: k, examples to pick; static. At least as many are unlabelled.
    """

    index: Array | int
    total: int = struct.field(pytree_node=False)
    count: int = struct.field(pytree_node=False)


class Picks(NamedTuple):
    """What a strategy returns.

    Attributes:
      indices: `k` int32, first pick first; each unlabelled and named once.
      scores: `N` float32 it was picked by, for the reports; 0 where it may not be picked; None where there are none.
    """

    indices: Array
    scores: Array | None = None


PickFunction = Callable[[Array, PoolFeatures, Query], Any]
"""(key, pool, query) -> `Picks`, or `k` indices alone. Pure, and traceable by `jit`."""


@dataclass(frozen=True)
class Strategy:
    """How the next examples are chosen.

    Attributes:
      name: in the registry.
      description: one line for people.
      needs: the features that the driver computes for it.
      pick: takes key, pool and query, and returns `Picks` or indices.
    """

    name: str
    description: str
    needs: tuple[Feature, ...]
    pick: PickFunction

    def measures(self, model: Which) -> list[Measure]:
        """The measures it needs of one of the two models, in the order of its needs."""
        return [need for need in self.needs if isinstance(need, Measure) and need.model == model]

    @property
    def sampled(self) -> bool:
        """Whether it needs Monte-Carlo samples."""
        return self.detailed or any(isinstance(need, Measure) and need.samples for need in self.needs)

    @property
    def detailed(self) -> bool:
        """Whether it needs the probabilities of all answers of a closed set."""
        return any(isinstance(need, Probabilities) for need in self.needs)

    @property
    def targeted(self) -> bool:
        """Whether it looks at target prompts."""
        return any(isinstance(need, Targets) for need in self.needs)

    @property
    def draws_answers(self) -> bool:
        """Whether it needs several drawn answers to each prompt."""
        return any(isinstance(need, Measure) and need.of_answers for need in self.needs)


StrategyFactory = Callable[[AcquisitionConfig], Strategy]


def register_strategy(
    name: str, *, needs: Sequence[Feature] = (), description: str | None = None
) -> Callable[[PickFunction], PickFunction]:
    """Decorator: registers a function as the strategy `name`.

    Args:
      name: what configurations call it.
      needs: features that the function reads.
      description: one line for people; the first line of the function's docstring where None.

    Raises:
      ConfigError: the package has a strategy of that name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @register_strategy("least_entropy", needs=[Measure("token_entropy")])
      ... def least_entropy(key, pool, query):
      ...     "The prompts the model is surest of."
      ...     return jnp.argsort(jnp.where(pool.unlabelled, pool[Measure("token_entropy")], jnp.inf))[: query.count]
      >>> get_strategy("least_entropy").description
      'The prompts the model is surest of.'
    """

    def register(function: PickFunction) -> PickFunction:
        said = description or (function.__doc__ or "").strip().partition("\n")[0] or "no description"
        STRATEGIES.register(name, Strategy(name, said, tuple(needs), function))
        return function

    return register


def get_strategy(name: str, options: AcquisitionConfig | None = None) -> Strategy:
    """The strategy of that name, with the settings of the `acquisition` section applied where it has such a part.

    Raises:
      ConfigError: there is no such strategy, or it has no such part.
    """
    found = STRATEGIES.get(name, "strategies")
    made = found
    if not isinstance(found, Strategy):
        made = _made(found, options or AcquisitionConfig()) if callable(found) else None
    if not isinstance(made, Strategy):
        raise ConfigError(f"the strategy {name} is a {type(found).__name__}; register a Strategy, or a function")
    needs = made.needs if isinstance(made.needs, list | tuple) else (made.needs,)
    wrong = [need for need in needs if not isinstance(need, Feature)]
    if wrong:
        raise ConfigError(
            f"strategy {name} needs {wrong[0]!r}, which is no feature; name a Measure, an Embedding, a GradientSketch, "
            "Targets, a Group or Probabilities"
        )
    if made.name == name and made.needs == tuple(needs):
        return made
    return dataclasses.replace(made, name=name, needs=tuple(needs))


@cache
def _made(factory: StrategyFactory, options: AcquisitionConfig) -> Strategy:
    """One object for the same settings, so that `jit` knows it again."""
    return factory(options)


def pick(
    strategy: Strategy,
    key: Array,
    features: Sequence[Array],
    unlabelled: Array,
    query: Query,
    labelled: Array | None = None,
) -> tuple[Array, Array | None]:
    """The strategy's picks. Pure; jit with `strategy`, `query.total` and `query.count` static.

    Args:
      strategy: from `get_strategy`.
      key: PRNG key.
      features: the arrays of `strategy.needs`, in that order.
      unlabelled: `N` bool, what may be picked.
      query: which query this is.
      labelled: `N` bool; None where that is all that may not be picked.

    Returns:
      `k` int32 indices and `N` scores, or None.

    Raises:
      ConfigError: the strategy does not return k whole numbers, or N scores.
    """
    if len(features) != len(strategy.needs):
        raise ValueError(f"strategy {strategy.name} needs {len(strategy.needs)} features, not {len(features)}")
    pool = PoolFeatures(unlabelled, dict(zip(strategy.needs, features, strict=True)), labelled)
    try:
        found = strategy.pick(key, pool, query)
    except ConfigError:
        raise
    except Exception as error:  # a plug-in's own code runs in there, and can fail in any way
        raise ConfigError(f"strategy {strategy.name} fails{_where(error)}: {_said(error)}") from error
    if found is None:
        raise ConfigError(f"strategy {strategy.name} returned nothing; it must return {query.count} indices, or Picks")
    indices, scores = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    indices = jnp.asarray(indices)
    if indices.shape != (query.count,) or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ConfigError(
            f"strategy {strategy.name} returned {indices.dtype}{list(indices.shape)}; it must return {query.count} "
            "whole numbers, query.count of them"
        )
    if scores is not None and jnp.shape(scores) != unlabelled.shape:
        raise ConfigError(
            f"strategy {strategy.name} returned scores of shape {list(jnp.shape(scores))}; there must be one for each "
            f"of the {unlabelled.shape[0]} examples of the pool"
        )
    return indices.astype(jnp.int32), scores


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"


def _where(error: Exception) -> str:
    """File and line of the strategy's own code."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f" ({frames[0].filename}, line {frames[0].lineno})" if frames else ""


def check_picks(strategy: Strategy, indices: np.ndarray, unlabelled: np.ndarray) -> None:
    """Refuses picks that are labelled already, out of the pool, or named twice, on the host.

    Raises:
      ConfigError: naming the strategy.
    """
    inside = (indices >= 0) & (indices < len(unlabelled))
    if not inside.all() or not unlabelled[indices].all():
        raise ConfigError(f"strategy {strategy.name} picked an example that is not in the unlabelled pool")
    if len(np.unique(indices)) != len(indices):
        raise ConfigError(f"strategy {strategy.name} picked an example twice")


def check_finite(scores: np.ndarray | jax.Array, ids: Sequence[str]) -> None:
    """Refuses scores that are not numbers, on the host.

    Args:
      scores: `N`, or `N×D`.
      ids: the N names.

    Raises:
      ScoreError: naming the examples, ten at most.
    """
    finite = np.isfinite(np.asarray(scores))
    bad = np.flatnonzero(~finite.reshape(len(ids), -1).all(axis=1)) if len(ids) else np.zeros(0, int)
    if bad.size:
        named = ", ".join(ids[i] for i in bad[:10]) + (f" and {bad.size - 10} more" if bad.size > 10 else "")
        raise ScoreError(
            f"{bad.size} of {len(ids)} examples have a score that is not finite: {named}; "
            "training has diverged (try a lower training.learning_rate), or the model's weights are broken"
        )
