"""One pass over a batch gives every token statistic that a measure is made of.

The scorer reads tokens: a prompt, and a response that somebody proposes. It has no notion of a gold
response; whoever wants one scored must put it there as the proposal.

Shapes: `K` MC samples, `B` batch, `T` tokens, `R` response tokens, `C` candidates, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.head import OutputHead, logits, map_positions, output_head
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, response_hidden, response_mask, response_targets
from star_jax.models.transformer import LanguageModel

Array = jax.Array


class TokenStatistics(NamedTuple):
    """What a forward pass says about each response token; 0 at masked positions.

    Attributes:
      log_prob: `K×B×R` log-probability of the token, nats.
      entropy: `K×B×R` entropy of the token distribution, nats.
      max_log_prob: `K×B×R` log-probability of the most probable token, nats.
      margin: `K×B×R` probability of the most probable token minus that of the second.
      mixture_entropy: `B×R` entropy of the mean over K of the token distributions, nats.
    """

    log_prob: Array
    entropy: Array
    max_log_prob: Array
    margin: Array
    mixture_entropy: Array


def distribution_statistics(log_probs: Array, targets: Array) -> TokenStatistics:
    """Statistics of categorical distributions.

    Args:
      log_probs: `M×K×V` normalised log-probabilities of M positions under K samples, nats.
      targets: `M` int32, the token that was chosen.

    Returns:
      Statistics with leaves `M×K`, and `M` for the mixture.
    """
    probs = jnp.exp(log_probs)
    chosen = jnp.take_along_axis(log_probs, targets[:, None, None], axis=-1)[..., 0]
    top = jax.lax.top_k(log_probs, 2)[0]
    return TokenStatistics(
        log_prob=chosen,
        entropy=_entropy(probs, log_probs),
        max_log_prob=top[..., 0],
        margin=jnp.exp(top[..., 0]) - jnp.exp(top[..., 1]),
        mixture_entropy=_mixture_entropy(probs, log_probs),
    )


def _entropy(probs: Array, log_probs: Array) -> Array:
    # 0 · log 0 = 0: a probability that underflows must not meet its infinite logarithm. NaN stays NaN.
    return -jnp.sum(jnp.where(probs == 0, 0, probs * log_probs), axis=-1)


def _mixture_entropy(probs: Array, log_probs: Array) -> Array:
    samples = probs.shape[1]
    if samples == 1:
        return _entropy(probs, log_probs)[:, 0]
    mixture = jnp.mean(probs, axis=1)
    log_mixture = jax.nn.logsumexp(log_probs, axis=1) - jnp.log(samples)
    return _entropy(mixture, log_mixture)


def statistics_of(hidden: Array, targets: Array, mask: Array, head: OutputHead) -> TokenStatistics:
    """Token statistics from hidden states.

    Args:
      hidden: `K×B×R×D`, K passes.
      targets: `B×R` response tokens.
      mask: `B×R`, True at response tokens.
      head: output projection.
    """
    samples, batch, width, features = hidden.shape
    flat = hidden.transpose(1, 2, 0, 3).reshape(batch * width, samples, features)

    def chunk(states: Array, tokens: Array) -> TokenStatistics:
        return distribution_statistics(jax.nn.log_softmax(logits(states, head)), tokens)

    rows: Any = map_positions(chunk, head, flat, targets.reshape(-1), samples=samples)

    def unflatten(leaf: Array) -> Array:
        shaped = leaf.reshape(batch, width, *leaf.shape[1:])
        shaped = jnp.where(mask.reshape(mask.shape + (1,) * (shaped.ndim - 2)), shaped, 0)
        return jnp.moveaxis(shaped, 2, 0) if shaped.ndim == 3 else shaped

    return jax.tree.map(unflatten, rows)


def score_responses(
    model: LanguageModel, adapter: Adapter | None, inputs: SequenceInputs, width: int
) -> tuple[TokenStatistics, Array]:
    """Deterministic scoring, dropout off: statistics with K = 1 and the mask `B×R` of response tokens.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      inputs: prompts and proposed responses.
      width: R, at least the longest response.
    """
    mask, targets = response_mask(inputs, width), response_targets(inputs, width)
    hidden = response_hidden(model, adapter, inputs, width, None)[None]
    return statistics_of(hidden, targets, mask, output_head(model)), mask


def candidate_statistics(
    statistics: TokenStatistics, mask: Array, candidates: int
) -> tuple[TokenStatistics, Array, Array]:
    """Turns scores of every candidate into statistics of the distribution over the closed answer set.

    Args:
      statistics: of `B·C` rows, the C candidates of a prompt next to each other.
      mask: `B·C×R`.
      candidates: C.

    Returns:
      Statistics with R = 1, whose one "token" is the choice of a candidate (the response is the one most
      probable under the mean over K), a mask `B×1`, and that choice `B`.
    """
    log_prob = jnp.sum(jnp.where(mask, statistics.log_prob, 0), axis=-1)
    samples = log_prob.shape[0]
    log_probs = jax.nn.log_softmax(log_prob.reshape(samples, -1, candidates)).transpose(1, 0, 2)
    choice = jnp.argmax(jax.nn.logsumexp(log_probs, axis=1), axis=-1)
    rows = distribution_statistics(log_probs, choice)
    shaped = TokenStatistics(
        log_prob=rows.log_prob.T[..., None],
        entropy=rows.entropy.T[..., None],
        max_log_prob=rows.max_log_prob.T[..., None],
        margin=rows.margin.T[..., None],
        mixture_entropy=rows.mixture_entropy[:, None],
    )
    return shaped, jnp.ones((choice.shape[0], 1), bool), choice
