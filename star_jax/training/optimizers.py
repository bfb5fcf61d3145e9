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


def direction(config: TrainingConfig) -> optax.GradientTransformation:
    """Adam's direction plus decoupled weight decay, a rate for A and one for B (Loshchilov & Hutter 2019).

    Multiplied by −(learning rate) it gives B ← B − γ(g + β·B), STAR's L2 on B.
    """
    clip = optax.clip_by_global_norm(config.gradient_clip) if config.gradient_clip else optax.identity()
    return optax.chain(
        clip,
        optax.scale_by_adam(b1=config.adam_b1, b2=config.adam_b2),
        optax.partition(
            {"a": optax.add_decayed_weights(config.decay_a), "b": optax.add_decayed_weights(config.decay_b)},
            factor_labels,
        ),
    )
