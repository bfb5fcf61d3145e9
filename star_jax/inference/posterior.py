"""Gaussian posteriors over an adapter's factors, to draw adapters from: the rivals of Monte-Carlo dropout.

TFB widens a trained adapter until its loss grows; Laplace's approximation reads the width from the curvature of the
loss. Neither trains anything.

Shapes: `L` layers, `I` and `O` input and output width of a projection, `r` rank, `K` samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.lora import Adapter, Factors

Array = jax.Array

NARROWEST, WIDEST, HALVINGS = 1e-5, 1.0, 12
"""Widths that TFB's search is between, and its steps, which leave a factor of 1.003."""

LOSSES = HALVINGS + 2
"""How often the search asks for the loss at the most."""

PRECISION_STEPS = 200
"""Steps of the prior's precision towards the largest evidence."""


class GaussianPosterior(NamedTuple):
    """Independent normal distributions over the entries of an adapter's factors.

    Attributes:
      mean: of the same function of tokens as the trained adapter.
      deviation: standard deviation of each entry, shaped as `mean.weights`; 0 keeps an entry.
    """

    mean: Adapter
    deviation: Factors

    def scaled(self, width: float) -> GaussianPosterior:
        """The same with all deviations multiplied by a number."""
        return GaussianPosterior(self.mean, jax.tree.map(lambda leaf: width * leaf, self.deviation))

    def draw(self, key: Array, samples: int) -> Adapter:
        """K adapters: factors with an axis K in front, and the one scale."""
        return Adapter(_draw(key, self.mean.weights, self.deviation, samples=samples), self.mean.scale)


class WeightSampling(NamedTuple):
    """Scoring by adapters that are drawn from a posterior.

    Attributes:
      samples: K.
      posterior: that they are drawn from.
    """

    samples: int
    posterior: GaussianPosterior


@partial(jax.jit, static_argnames="samples")
def _draw(key: Array, mean: Factors, deviation: Factors, *, samples: int) -> Factors:
    means, tree = jax.tree.flatten(mean)
    keys = jax.random.split(key, len(means))
    drawn = [
        one + width * jax.random.normal(own, (samples, *one.shape))
        for one, width, own in zip(means, jax.tree.leaves(deviation), keys, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def isotropic_family(adapter: Adapter) -> GaussianPosterior:
    """TFB's family of posteriors at σ = 1 (Shi et al. 2025, arXiv 2412.05723, section 3.1).

    With B = P diag(d) Q the same adapter is A' = A P, B' = diag(d) Q, and A' gets noise of standard deviation σ/d_i in
    column i. What B' makes of it, σ E Q with E standard normal, is noise of one width in all directions that the
    adapter can change a weight in. A direction that B lacks gets none.
    """
    weights: dict[str, dict[str, Array]] = {}
    deviation: dict[str, dict[str, Array]] = {}
    for name, factors in adapter.weights["layers"].items():
        rotation, singular, rows = jnp.linalg.svd(factors["b"], full_matrices=False)
        least = jnp.finfo(singular.dtype).eps * max(factors["b"].shape[1:]) * singular[:, :1]
        there = singular > least
        turned = jnp.matmul(factors["a"], rotation, precision=jax.lax.Precision.HIGHEST)
        width = jnp.where(there, 1 / jnp.where(there, singular, 1), 0)[:, None]
        weights[name] = {"a": turned, "b": singular[..., None] * rows}
        deviation[name] = {"a": jnp.broadcast_to(width, turned.shape), "b": jnp.zeros_like(rows)}
    return GaussianPosterior(Adapter({"layers": weights}, adapter.scale), {"layers": deviation})


def widest(loss: Callable[[float], float], tolerance: float) -> float:
    """The largest width whose loss is at most (1 + tolerance) times that of width 0: TFB's search (equation 7).

    Halving on the logarithm between `NARROWEST` and `WIDEST`, as if the loss grew with the width; the narrowest where
    even that costs more. The paper's code counts a fall of the loss like a rise; here it may fall.

    Args:
      loss: of a width, positive; one that is not finite is too large.
      tolerance: share ε by which it may grow.
    """
    most = (1 + tolerance) * loss(0.0)
    if loss(WIDEST) <= most:
        return WIDEST
    low, high = math.log(NARROWEST), math.log(WIDEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if loss(math.exp(middle)) <= most:
            low = middle
        else:
            high = middle
    return math.exp(low)


def laplace(adapter: Adapter, fisher: Factors) -> GaussianPosterior:
    """Laplace's approximation with a diagonal curvature: N(θ, (F + λ)⁻¹) for the trained factors θ.

    F is the Fisher information of the labelled examples and λ the precision of the prior N(0, 1/λ), which is where the
    evidence is largest (`prior_precision`). Laplace-LoRA (Yang et al. 2024, arXiv 2308.13111, section 4) has a
    Kronecker-factored curvature and a linearised model; here the curvature is its diagonal, and the network itself is
    run with the weights that were drawn, which spreads predictions more. What else held the training back, its decay
    and dropout, is not looked at.

    Args:
      adapter: trained.
      fisher: diagonal of F, summed over examples, shaped as `adapter.weights`.
    """
    used = _used(adapter.weights)
    precision = prior_precision(adapter.weights, fisher, used)
    deviation = jax.tree.map(lambda part, one: jnp.where(one, (part + precision) ** -0.5, 0), fisher, used)
    return GaussianPosterior(adapter, deviation)


def prior_precision(weights: Factors, fisher: Factors, used: Factors) -> Array:
    """The λ of the largest evidence ½ Σ log λ − ½ λ‖θ‖² − ½ Σ log(F + λ), a scalar.

    By MacKay's steps λ ← γ/‖θ‖² with γ = Σ F/(F + λ), the number of well-determined entries (MacKay 1992, "Bayesian
    interpolation", equation 4.9).

    Args:
      weights: θ.
      fisher: F.
      used: True where an entry counts.
    """
    count = partial(jax.tree.map, lambda part, one: jnp.where(one, part, 0).sum())
    square = _total(count(jax.tree.map(jnp.square, weights), used))

    def step(_: int, precision: Array) -> Array:
        return _total(count(jax.tree.map(lambda part: part / (part + precision), fisher), used)) / square

    return jax.lax.fori_loop(0, PRECISION_STEPS, step, jnp.ones(()))


def _total(tree: Factors) -> Array:
    return sum(jax.tree.leaves(tree), start=jnp.zeros(()))


def _used(weights: Factors) -> Factors:
    """True where a factor has that rank in that layer: what a layer lacks is 0 in both, and stays 0."""

    def used(factors: dict[str, Array]) -> dict[str, Array]:
        rank = (factors["a"] != 0).any(axis=1) | (factors["b"] != 0).any(axis=2)
        return {
            "a": jnp.broadcast_to(rank[:, None], factors["a"].shape),
            "b": jnp.broadcast_to(rank[:, :, None], factors["b"].shape),
        }

    return {"layers": {name: used(dict(factors)) for name, factors in weights["layers"].items()}}
