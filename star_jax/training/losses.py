"""The training objective, as masked sums and counts.

The gradient with respect to the hidden states is computed with the loss, chunk by chunk, while a chunk's logits are at
hand: nothing as wide as the vocabulary is kept for a backward pass, or computed twice.

Shapes: `B` batch, `T` tokens, `C` positions of a chunk, `D` width, `V` vocabulary. All in nats.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from star_jax.config import TrainingConfig
from star_jax.models.lm_head import OutputHead, at_positions, chunk_size, logits_and_slope
from star_jax.models.lora import Factors, b_square
from star_jax.ops.platform import computed_once

Array = jax.Array


@struct.dataclass
class TokenLosses:
    """Sums over response tokens. Only `penalised` has a gradient.

    Attributes:
      penalised: Σ of what is minimised: cross-entropy with the confidence penalty.
      cross_entropy: Σ −log p(token), smoothed where asked for.
      entropy: Σ H(p).
      missing_entropy: Σ max(0, Γ − H(p)), 0 without a floor Γ.
      count: number of response tokens.
    """

    penalised: Array
    cross_entropy: Array
    entropy: Array
    missing_entropy: Array
    count: Array


class _Shape(NamedTuple):
    """What the loss of a token is made of, known when it is compiled."""

    label_smoothing: float
    penalty: float
    floor: float | None


def token_losses(hidden: Array, targets: Array, mask: Array, head: OutputHead, config: TrainingConfig) -> TokenLosses:
    """Response-masked losses.

    A token's loss is its cross-entropy, smoothed over the vocabulary (Szegedy et al. 2016) by
    `config.label_smoothing`, − β_c · H (Pereyra et al. 2017, arXiv 1701.06548, equation 4), or + β_c · max(0, Γ − H)
    in the hinge form (equation 5 read as a penalty on entropy below Γ); β_c is `config.confidence_penalty` and Γ
    `config.entropy_floor`.

    Args:
      hidden: `B×T×D` states.
      targets: `B×T`, the token that follows each.
      mask: `B×T`, True where that is a response token of a real row.
      head: output projection, frozen.
      config: smoothing and penalty.

    Raises:
      ValueError: when it is differentiated with respect to the head.
    """
    shape = _Shape(config.label_smoothing, config.confidence_penalty, config.entropy_floor)
    penalised, *rest = _each(shape, head.softcap, hidden, head.weight, targets, mask)
    nll, entropy, missing = map(jax.lax.stop_gradient, rest)
    return TokenLosses(penalised, nll, entropy, missing, jnp.sum(mask))


def objective(losses: TokenLosses, weights: Factors, config: TrainingConfig) -> Array:
    """The scalar that is minimised, nats a response token: the mean of `penalised` plus β · ‖B‖²."""
    loss = losses.penalised / jnp.maximum(losses.count, 1)
    return loss + config.l2_b * b_square(weights) if config.l2_b else loss


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _each(
    shape: _Shape, softcap: float | None, hidden: Array, weight: Array, targets: Array, mask: Array
) -> tuple[Array, ...]:
    """The four sums of `TokenLosses`."""
    return _sums(_positions(shape, softcap, hidden, weight, targets, mask)[0])


def _each_forward(shape: _Shape, softcap: float | None, *arguments: Any) -> tuple[tuple[Array, ...], Array]:
    hidden, weight, targets, mask = (argument.value for argument in arguments)
    if arguments[1].perturbed:
        raise ValueError("token_losses has no gradient with respect to the output projection, which is frozen")
    losses, slopes = _positions(shape, softcap, hidden, weight, targets, mask)
    return _sums(losses), slopes


def _each_backward(
    shape: _Shape, softcap: float | None, slopes: Array, cotangents: tuple[Any, ...]
) -> tuple[Array | None, ...]:
    outer = cotangents[0]
    unused = isinstance(outer, jax.custom_derivatives.SymbolicZero)
    return (None if unused else (slopes * outer).astype(slopes.dtype)), None, None, None


_each.defvjp(_each_forward, _each_backward, symbolic_zeros=True)


def _sums(losses: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(jnp.sum(part) for part in losses)


def _positions(
    shape: _Shape, softcap: float | None, hidden: Array, weight: Array, targets: Array, mask: Array
) -> tuple[tuple[Array, ...], Array]:
    """Losses `B×T` of each position and the slope `B×T×D` of the first with respect to the hidden states."""
    head = OutputHead(weight, softcap)
    function = partial(_chunk, shape, head)
    return at_positions(function, mask, hidden, targets, chunk=chunk_size(head))


def _chunk(shape: _Shape, head: OutputHead, states: Array, tokens: Array) -> tuple[tuple[Array, ...], Array]:
    """`_positions` of a chunk: states `C×D`, tokens `C`."""
    scores, softcap_slope = logits_and_slope(states, head)
    below = scores - jnp.max(scores, axis=-1, keepdims=True)
    powers = computed_once(jnp.exp(below))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    log_probs, probs = below - jnp.log(total), powers / total
    entropy = -jnp.sum(probs * log_probs, axis=-1)
    here = jnp.arange(scores.shape[-1])[None] == tokens[:, None]
    smooth = shape.label_smoothing
    nll = -(1 - smooth) * jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
    slope = probs - (1 - smooth) * here
    if smooth:
        nll = nll - smooth * jnp.mean(log_probs, axis=-1)
        slope = slope - smooth / scores.shape[-1]
    missing = jnp.zeros_like(entropy) if shape.floor is None else jnp.maximum(0.0, shape.floor - entropy)
    penalised = nll
    if shape.penalty:
        held = -entropy if shape.floor is None else missing
        penalised = nll + shape.penalty * held
        active = jnp.ones_like(entropy) if shape.floor is None else (missing > 0).astype(entropy.dtype)
        slope = slope + shape.penalty * active[:, None] * probs * (log_probs + entropy[:, None])
    if softcap_slope is not None:
        slope = slope * softcap_slope
    inner = jnp.matmul(slope.astype(states.dtype), head.weight, preferred_element_type=jnp.float32)
    return (penalised, nll, entropy, missing), inner.astype(states.dtype)
