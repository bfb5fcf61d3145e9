"""Dynamic uncertainty: how base and full uncertainty are brought to one scale and mixed as the loop goes on.

u_t(x) = λ(t)·u_b(x) + (1 − λ(t))·u_f(x), STAR (Zhang et al. 2024, arXiv 2403.01165). Three parts, each
a pure function: schedules give λ(t), normalisers the common scale, and the combinations mix.

Shapes: N pool. Arithmetic is done in the type of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import chex
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Schedule = Callable[[ArrayLike, int], Array]
"""(t, queries) -> λ in [0, 1], the weight of the base model; t = 0, 1, … counts the queries a run makes."""


class Normaliser(Protocol):
    """Scale of the available entries of `N` values; entries that are not available neither count nor matter."""

    def __call__(self, values: Array, available: Array) -> Array:
        """`N` values and `N` bool -> `N` on the common scale, 0 where not available or where all are equal."""


def released_schedule(t: ArrayLike, queries: int) -> Array:
    """λ = 1 − 0.1·(t + 1), whatever the number of queries: 0.9, 0.8, … and 0 from t = 9 on."""
    del queries
    return jnp.clip((9.0 - jnp.asarray(t, float)) / 10.0, 0.0, 1.0)


def linear_schedule(t: ArrayLike, queries: int) -> Array:
    """λ = 1 − t/T with T = `queries`: the first query trusts the base model alone, the last gives it 1/T."""
    return jnp.clip(1.0 - jnp.asarray(t, float) / queries, 0.0, 1.0)


def cosine_schedule(t: ArrayLike, queries: int) -> Array:
    """λ = (1 + cos(π·t/T))/2 with T = `queries`: as linear, with a slow start and a slow end."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(jnp.asarray(t, float) / queries, 0.0, 1.0)))


@dataclass(frozen=True)
class ConstantSchedule:
    """λ = `value` throughout."""

    value: float

    def __call__(self, t: ArrayLike, queries: int) -> Array:
        """The value, whatever t."""
        return jnp.full_like(jnp.asarray(t, float), self.value)


@dataclass(frozen=True)
class ReversedSchedule:
    """The same weights in the opposite order, the control for "early base, late full": λ(T − 1 − t)."""

    schedule: Schedule

    def __call__(self, t: ArrayLike, queries: int) -> Array:
        """λ of the schedule at T − 1 − t."""
        return self.schedule(queries - 1 - jnp.asarray(t), queries)


SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "released": lambda constant: released_schedule,
    "linear": lambda constant: linear_schedule,
    "cosine": lambda constant: cosine_schedule,
    "constant": ConstantSchedule,
}
"""Name -> schedule, given the value the constant one takes. All are monotonically non-increasing in t."""


def minmax(values: Array, available: Array) -> Array:
    """(u − min)/(max − min): the most uncertain at 1, the least at 0. Shapes as in `Normaliser`."""
    low, high = _extremes(values, available)
    return _where_varied(values - low, high - low, low, high, available)


def zscore(values: Array, available: Array) -> Array:
    """(u − mean)/standard deviation (of the population, not the sample). Shapes as in `Normaliser`."""
    low, high = _extremes(values, available)
    count = jnp.maximum(available.sum(), 1)
    centred = jnp.where(available, values - jnp.where(available, values, 0).sum() / count, 0)
    deviation = jnp.sqrt(jnp.square(centred).sum() / count)
    return _where_varied(centred, deviation, low, high, available)


def rank(values: Array, available: Array) -> Array:
    """Rank over the number of available entries less one, in [0, 1]; equal values share their average rank.

    Shapes as in `Normaliser`.
    """
    low, high = _extremes(values, available)
    # Entries out of the running sort behind all others, so that they never lift a rank.
    ordered = jnp.sort(jnp.where(available, values, jnp.inf))
    below = jnp.searchsorted(ordered, values, side="left")
    up_to = jnp.searchsorted(ordered, values, side="right")
    position = ((below + up_to - 1) / 2).astype(values.dtype)
    return _where_varied(position, available.sum() - 1, low, high, available)


NORMALISERS: dict[str, Normaliser] = {"minmax": minmax, "zscore": zscore, "rank": rank}
"""Name -> normaliser."""


def blend(lam: ArrayLike, base: Array, full: Array) -> Array:
    """λ·u_b + (1 − λ)·u_f of two `N` arrays on the same scale; `lam` is a scalar in [0, 1]."""
    chex.assert_equal_shape([base, full])
    weight = jnp.asarray(lam, full.dtype)
    return weight * base + (1 - weight) * full


def subtract(base: Array, full: Array) -> Array:
    """u_f − u_b of two `N` arrays on the same scale: the paper's ablation."""
    chex.assert_equal_shape([base, full])
    return full - base


def _extremes(values: Array, available: Array) -> tuple[Array, Array]:
    """Least and greatest available value."""
    chex.assert_rank([values, available], 1)
    chex.assert_equal_shape([values, available])
    chex.assert_type(available, bool)
    return jnp.where(available, values, jnp.inf).min(), jnp.where(available, values, -jnp.inf).max()


def _where_varied(values: Array, scale: Array, low: Array, high: Array, available: Array) -> Array:
    """`values / scale` where available; 0 elsewhere and where all available values are equal.

    Equality is read off the extremes: a standard deviation of equal values need not round to 0.
    """
    varied = high > low
    return jnp.where(available & varied, values / jnp.where(varied, scale, 1), 0)
