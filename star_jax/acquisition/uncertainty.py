"""Token statistics to one number an example: the uncertainty measures, and nothing about how they are combined.

Every measure but `response_tokens` grows with uncertainty; a statistic that shrinks with it (margin, greatest
probability) is turned round here and nowhere else. Over the tokens of a response a measure is summed; the suffixes
`_mean` and `_max` name the other two reductions. Over Monte-Carlo samples it is averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from star_jax.inference.scoring import TokenStatistics

_TOKEN_MEASURES = ("sequence_nll", "token_entropy", "least_confidence", "margin", "bald")

MEASURES: tuple[str, ...] = (
    *(name + suffix for name in _TOKEN_MEASURES for suffix in ("", "_mean", "_max")),
    "jensen_gap",
    "response_tokens",
)
"""Names of everything `sequence_measures` returns."""

ANSWER_MEASURES = ("vote_entropy", "semantic_entropy", "pairwise_disagreement")
"""Names of what `votes.voted` says of several drawn answers."""


def sequence_measures(statistics: TokenStatistics, mask: Array) -> dict[str, Array]:
    """One number an example for every name in `MEASURES`.

    - `sequence_nll`: −log p of the tokens, nats; the paper's PE (STAR, Zhang et al. 2024, arXiv 2403.01165).
    - `token_entropy`: entropy of the token distributions, nats; the paper's ME.
    - `least_confidence`: 1 − probability of the most probable token (Lewis & Gale 1994). Not its logarithm, which on
      a greedy response is the sequence NLL over again.
    - `margin`: 1 − (probability of the best token − probability of the second) (Scheffer et al. 2001).
    - `bald`: mutual information between token and model, nats: entropy of the mean distribution − mean entropy
      (Houlsby et al. 2011, arXiv 1112.5745, equation 2), 0 for one sample.
    - `jensen_gap`: mean NLL − NLL under the mean probability of the whole response, nats, 0 for one sample.
    - `response_tokens`: number of response tokens, int32.

    Args:
      statistics: `log_prob`, `entropy`, `max_log_prob`, `margin` `K×B×R` and `mixture_entropy` `B×R`, float32.
      mask: `B×R` bool, True at response tokens. A row without any gets 0 throughout.

    Returns:
      `B` arrays by name. B batch, R response tokens, K Monte-Carlo samples.
    """
    chex.assert_rank([statistics.log_prob, mask], [3, 2])
    chex.assert_equal_shape([statistics.log_prob, statistics.entropy, statistics.max_log_prob, statistics.margin])
    chex.assert_equal_shape([statistics.log_prob[0], statistics.mixture_entropy, mask])
    chex.assert_type(mask, bool)

    per_token = {
        "sequence_nll": -statistics.log_prob,
        "token_entropy": statistics.entropy,
        "least_confidence": -jnp.expm1(statistics.max_log_prob),
        "margin": 1.0 - statistics.margin,
        "bald": _mutual_information(statistics)[None],
    }
    measures: dict[str, Array] = {}
    for name, values in per_token.items():
        measures.update(_reduce(name, values, mask))
    for name in ("bald", "bald_mean", "bald_max"):
        # Mutual information is never negative, but the two entropies are rounded apart.
        measures[name] = jnp.maximum(measures[name], 0.0)
    measures["jensen_gap"] = _jensen_gap(statistics.log_prob, mask)
    measures["response_tokens"] = mask.sum(axis=-1, dtype=jnp.int32)
    return measures


def _reduce(name: str, values: Array, mask: Array) -> dict[str, Array]:
    """Sum, mean and max over response tokens, each averaged over samples: `K×B×R` -> three `B`."""
    tokens = mask.sum(axis=-1)
    total = jnp.where(mask, values, 0.0).sum(axis=-1)
    largest = jnp.where(mask, values, -jnp.inf).max(axis=-1)
    return {
        name: total.mean(axis=0),
        f"{name}_mean": (total / jnp.maximum(tokens, 1)).mean(axis=0),
        f"{name}_max": jnp.where(tokens > 0, largest, 0.0).mean(axis=0),
    }


def _mutual_information(statistics: TokenStatistics) -> Array:
    """Per token, nats: `B×R`. Exactly 0 for one sample, whatever rounding the two entropies saw."""
    if statistics.entropy.shape[0] == 1:
        return jnp.zeros_like(statistics.mixture_entropy)
    return statistics.mixture_entropy - statistics.entropy.mean(axis=0)


def _jensen_gap(log_prob: Array, mask: Array) -> Array:
    """mean_k NLL_k + log mean_k exp(−NLL_k) of whole responses, nats: `K×B×R` -> `B`."""
    samples = log_prob.shape[0]
    sequence = jnp.where(mask, log_prob, 0.0).sum(axis=-1)
    if samples == 1:
        return jnp.zeros_like(sequence[0])
    gap = jax.nn.logsumexp(sequence, axis=0) - jnp.log(samples) - sequence.mean(axis=0)
    return jnp.maximum(gap, 0.0)  # never negative by Jensen's inequality; rounding may say otherwise
