"""AdamW by label tree, and schedules over the steps really taken.

The learning rate is a function of (step, total) with both traced, so that rounds of different length share
one compiled step. That is why it is applied by the trainer instead of being baked into the optax chain.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from star_jax.config import TrainingConfig
from star_jax.parallel.mesh import gathered

Array = jax.Array


def learning_rate(step: Array, total: Array, config: TrainingConfig) -> Array:
    """Rate at `step` (0-based) of `total`: linear warm-up, plateau, then linear or cosine fall to 0.

    The fall spans the last `decay_fraction` of the steps; what is left between it and the warm-up is flat.
    """
    done = step.astype(jnp.float32)
    steps = jnp.maximum(total.astype(jnp.float32), 1.0)
    warmup = config.warmup_fraction * steps
    rise = jnp.minimum(1.0, (done + 1.0) / jnp.maximum(warmup, 1.0))
    if config.schedule == "constant":
        return config.learning_rate * rise
    span = jnp.maximum(jnp.minimum(config.decay_fraction * steps, steps - warmup), 1.0)
    progress = jnp.clip((done - (steps - span)) / span, 0.0, 1.0)
    fall = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return config.learning_rate * rise * fall


def factor_labels(weights: Any) -> Any:
    """The tree with `a` or `b` at each leaf, by the factor it is."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key, weights)


def norm(tree: Any) -> Array:
    """Square root of the sum of all squares, of gradients that may lie in parts: those are put together first, so that
    the sum is rounded as where every device has all of them."""
    found: Array = optax.tree.norm(gathered(tree))
    return found


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """Optax's `clip_by_global_norm`, told the norm as `length` where a device has but a part of the gradient."""

    def update(gradient: Any, state: Any, _: Any = None, *, length: Array | None = None, **rest: Any) -> Any:
        length = norm(gradient) if length is None else length
        return jax.tree.map(lambda leaf: jnp.where(length < limit, leaf, leaf / length * limit), gradient), state

    return optax.GradientTransformationExtraArgs(optax.clip_by_global_norm(limit).init, update)


def direction(config: TrainingConfig) -> optax.GradientTransformationExtraArgs:
    """Adam's direction plus decoupled weight decay, a rate for A and one for B (Loshchilov & Hutter 2019).

    Multiplied by −(learning rate) it gives B ← B − γ(g + β·B), STAR's L2 on B. `update` may be told
    the gradient's norm, `length`.
    """
    return optax.chain(
        clip_by_norm(config.gradient_clip) if config.gradient_clip else optax.identity(),
        optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2),
        optax.partition(
            {"a": optax.add_decayed_weights(config.decay_a), "b": optax.add_decayed_weights(config.decay_b)},
            factor_labels,
        ),
    )
