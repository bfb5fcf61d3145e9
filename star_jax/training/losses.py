"""The training objective, as masked sums and counts.

Shapes: `B` batch, `R` response tokens, `M` = B·R positions, `D` width, `V` vocabulary. All in nats.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from star_jax.config import TrainingConfig
from star_jax.models.head import OutputHead, logits, map_positions
from star_jax.models.lora import Factors

Array = jax.Array


@struct.dataclass
class TokenLosses:
    """Sums over response tokens.

    Attributes:
      cross_entropy: Σ −log p(token), smoothed where asked for.
      entropy: Σ H(p).
      missing_entropy: Σ max(0, Γ − H(p)), 0 without a floor Γ.
      count: number of response tokens.
    """

    cross_entropy: Array
    entropy: Array
    missing_entropy: Array
    count: Array


def token_losses(
    hidden: Array,
    targets: Array,
    mask: Array,
    head: OutputHead,
    *,
    label_smoothing: float = 0.0,
    entropy_floor: float | None = None,
) -> TokenLosses:
    """Response-masked losses.

    Args:
      hidden: `B×R×D` states that predict the response tokens.
      targets: `B×R` those tokens.
      mask: `B×R`, True at response tokens of real rows.
      head: output projection.
      label_smoothing: share of the target mass spread evenly over the vocabulary (Szegedy et al. 2016).
      entropy_floor: Γ of the hinge, nats.
    """

    def chunk(states: Array, tokens: Array) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(logits(states, head))
        chosen = jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0]
        nll = -(1 - label_smoothing) * chosen - label_smoothing * jnp.mean(log_probs, axis=-1)
        # 0 · log 0 = 0 holds without a guard here: log_softmax of finite logits is finite.
        return nll, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    flat = hidden.reshape(-1, hidden.shape[-1])
    nll, entropy = map_positions(chunk, head, flat, targets.reshape(-1))
    keep = mask.reshape(-1)
    missing = jnp.zeros_like(entropy) if entropy_floor is None else jnp.maximum(0.0, entropy_floor - entropy)
    sums = [jnp.sum(jnp.where(keep, part, 0.0)) for part in (nll, entropy, missing)]
    return TokenLosses(cross_entropy=sums[0], entropy=sums[1], missing_entropy=sums[2], count=jnp.sum(keep))


def objective(losses: TokenLosses, weights: Factors, config: TrainingConfig) -> Array:
    """The scalar that is minimised, nats a response token.

    Cross-entropy − β_c · H (Pereyra et al. 2017, arXiv 1701.06548, equation 4), or + β_c · max(0, Γ − H)
    in the hinge form (equation 5 read as a penalty on entropy below Γ), plus β · ‖B‖².
    """
    count = jnp.maximum(losses.count, 1)
    loss = losses.cross_entropy / count
    if config.confidence_penalty:
        plain = config.entropy_floor is None
        penalty = -losses.entropy if plain else losses.missing_entropy
        loss = loss + config.confidence_penalty * penalty / count
    if config.l2_b:
        loss = loss + config.l2_b * b_square(weights)
    return loss


def b_square(weights: Factors) -> Array:
    """‖B‖², summed over all layers and projections."""
    return sum((jnp.sum(jnp.square(f["b"])) for f in weights["layers"].values()), start=jnp.zeros(()))
