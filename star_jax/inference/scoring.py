"""One pass over a batch gives every token statistic that a measure is made of.

The scorer reads tokens: a prompt, and a response that somebody proposes. It has no notion of a gold
response; whoever wants one scored must put it there as the proposal.

Shapes: `K` MC samples, `B` batch, `T` tokens, `M` positions, `C` candidates, `D` width, `V` vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.lm_head import OutputHead, at_positions, chunk_size, logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel
from star_jax.ops.platform import computed_once

Array = jax.Array

TIE = 2.0**-16
"""Tokens whose probabilities differ by a smaller share than this are equally probable. Not 0: a compiler may leave the
product that caps a logit unrounded where it takes the largest from it, and the power of the largest is then not 1."""


class TokenStatistics(NamedTuple):
    """What a forward pass says about each response token, at the position that predicts it; 0 elsewhere.

    Attributes:
      log_prob: `K×B×T` log-probability of the token, nats.
      entropy: `K×B×T` entropy of the token distribution, nats.
      max_log_prob: `K×B×T` log-probability of the most probable token, nats.
      margin: `K×B×T` probability of the most probable token minus that of the second.
      mixture_entropy: `B×T` entropy of the mean over K of the token distributions, nats.
    """

    log_prob: Array
    entropy: Array
    max_log_prob: Array
    margin: Array
    mixture_entropy: Array


def distribution_statistics(logits: Array, targets: Array) -> TokenStatistics:
    """Statistics of categorical distributions.

    Args:
      logits: `K×M×V`, of M positions under K samples; any constant may have been added to a distribution's.
      targets: `M` int32, the token that was chosen.

    Returns:
      Statistics with leaves `K×M`, and `M` for the mixture.
    """
    each = [_of_one(sample, targets) for sample in logits]
    log_prob, entropy, max_log_prob, margin = (
        jnp.stack(leaves) for leaves in zip(*(one[:4] for one in each), strict=True)
    )
    if len(each) == 1:
        return TokenStatistics(log_prob, entropy, max_log_prob, margin, entropy[0])
    mixture = sum((one.probs for one in each), start=jnp.zeros(())) / len(each)
    return TokenStatistics(log_prob, entropy, max_log_prob, margin, _entropy(mixture))


class _One(NamedTuple):
    """Statistics `M` of one sample, and its distributions `M×V`."""

    log_prob: Array
    entropy: Array
    max_log_prob: Array
    margin: Array
    probs: Array


def _of_one(logits: Array, targets: Array) -> _One:
    largest = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - largest
    powers = computed_once(jnp.exp(below))
    total = jnp.sum(powers, axis=-1)
    log_total = jnp.log(total)
    # 0 · log 0 = 0: a power that underflows must not meet its infinite logarithm. NaN stays NaN.
    weighted = jnp.sum(jnp.where(powers == 0, 0, powers * below), axis=-1)
    chosen = jnp.take_along_axis(below, targets[:, None], axis=-1)[:, 0]
    # The second largest without sorting: the largest but one, or the largest again where it stands twice.
    tied = powers >= 1 - TIE
    twice = jnp.sum(tied, axis=-1) > 1
    second = jnp.where(twice, 1.0, jnp.max(jnp.where(tied, 0, powers), axis=-1))
    return _One(
        chosen - log_total, log_total - weighted / total, -log_total, (1 - second) / total, powers / total[:, None]
    )


def _entropy(probs: Array) -> Array:
    probs = computed_once(probs)
    return -jnp.sum(jnp.where(probs == 0, 0, probs * jnp.log(probs)), axis=-1)


def statistics_of(hidden: Array, targets: Array, mask: Array, head: OutputHead) -> TokenStatistics:
    """Token statistics from hidden states.

    Args:
      hidden: `K×B×T×D`, K passes.
      targets: `B×T`, the token that follows each position.
      mask: `B×T`, True at the positions that count.
      head: output projection.
    """
    samples = hidden.shape[0]

    def chunk(states: Array, tokens: Array) -> TokenStatistics:
        scores = logits(states.swapaxes(0, 1).reshape(-1, states.shape[-1]), head)
        found = distribution_statistics(scores.reshape(samples, -1, scores.shape[-1]), tokens)
        return jax.tree.map(lambda leaf: leaf.T, found)

    found = at_positions(chunk, mask, jnp.moveaxis(hidden, 0, 2), targets, chunk=chunk_size(head, samples))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0) if leaf.ndim == 3 else leaf, found)


def score_responses(
    model: LanguageModel, adapter: Adapter | None, inputs: SequenceInputs, capacity: int | None = None
) -> tuple[TokenStatistics, Array]:
    """Deterministic scoring, dropout off: statistics with K = 1 and the mask `B×T` of what predicts the response.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      inputs: prompts and proposed responses.
      capacity: as `hidden_states` takes them.
    """
    mask = response_mask(inputs)
    hidden = hidden_states(model, adapter, inputs, None, capacity)[None]
    return statistics_of(hidden, next_tokens(inputs), mask, output_head(model)), mask


def candidate_statistics(
    statistics: TokenStatistics, mask: Array, candidates: int
) -> tuple[TokenStatistics, Array, Array]:
    """Turns scores of every candidate into statistics of the distribution over the closed answer set.

    Args:
      statistics: of `B·C` rows, the C candidates of a prompt next to each other.
      mask: `B·C×T`.
      candidates: C.

    Returns:
      Statistics with T = 1, whose one "token" is the choice of a candidate (the response is the one most
      probable under the mean over K), a mask `B×1`, and that choice `B`.
    """
    return choice_statistics(candidate_log_probs(statistics, mask, candidates))


def candidate_log_probs(statistics: TokenStatistics, mask: Array, candidates: int) -> Array:
    """Log-probability `K×B×C` of each candidate behind its prompt; arguments as those of `candidate_statistics`."""
    log_prob = jnp.sum(jnp.where(mask, statistics.log_prob, 0), axis=-1)
    return log_prob.reshape(log_prob.shape[0], -1, candidates)


def choice_statistics(log_prob: Array) -> tuple[TokenStatistics, Array, Array]:
    """As `candidate_statistics`, from the log-probability `K×B×C` of each candidate behind its prompt."""
    log_probs = jax.nn.log_softmax(log_prob)
    choice = jnp.argmax(jax.nn.logsumexp(log_probs, axis=0), axis=-1)
    shaped = jax.tree.map(lambda leaf: leaf[..., None], distribution_statistics(log_probs, choice))
    return shaped, jnp.ones((choice.shape[0], 1), bool), choice
