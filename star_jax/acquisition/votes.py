"""How several drawn answers to a prompt disagree: votes over what a task reads from them.

Answers are of one kind where the task's parser reads the same from them; one that it cannot read is of one kind with
answers of the same text.

Shapes: `N` pool, `K` drawn answers of a prompt, `R` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from star_jax.acquisition.pool_sampling import SampledAnswers
from star_jax.acquisition.pool_scoring import PoolScores

Read = Callable[[str], str | None]
"""Text of an answer -> what a task reads from it, or None."""


def kinds_of(
    sampled: SampledAnswers, text: Callable[[np.ndarray], str], read: Read, rows: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Which drawn answers are of one kind, and which are the same text.

    Args:
      sampled: answers to a pool.
      text: tokens of an answer -> its text.
      read: a task's parser.
      rows: numbers of the examples that are looked at.

    Returns:
      `M×K` int32 twice, for M rows: the number of the first answer to the prompt of the same kind, and of the same
      text.
    """
    responses, lengths = np.asarray(sampled.responses), np.asarray(sampled.lengths)
    kinds, texts = (np.zeros((len(np.asarray(rows)), responses.shape[1]), np.int32) for _ in range(2))
    for place, row in enumerate(np.asarray(rows).tolist()):
        first_kind: dict[Any, int] = {}
        first_text: dict[str, int] = {}
        for number, (tokens, length) in enumerate(zip(responses[row], lengths[row].tolist(), strict=True)):
            written = text(tokens[:length]).strip()
            answer = read(written)
            kinds[place, number] = first_kind.setdefault(
                (answer is None, written if answer is None else answer), number
            )
            texts[place, number] = first_text.setdefault(written, number)
    return kinds, texts


def vote_entropy(kinds: np.ndarray) -> np.ndarray:
    """Entropy of the kinds' shares of the votes, −Σ n/K log n/K, nats: `M`.

    Disagreement of self-consistency's votes (Wang et al. 2023, arXiv 2203.11171). It is also the discrete form of
    semantic entropy (Farquhar et al. 2024, Nature 630) with answers clustered by what the parser reads, not by mutual
    entailment.
    """
    share = _same(kinds).mean(axis=2)
    return np.abs(-np.log(share).mean(axis=1))


def pairwise_disagreement(kinds: np.ndarray) -> np.ndarray:
    """Share of the pairs of answers that are of different kinds, in [0, 1]: `M`; of K ≥ 2 answers."""
    samples = kinds.shape[1]
    return (samples**2 - _same(kinds).sum(axis=(1, 2))) / (samples * (samples - 1))


def semantic_entropy(kinds: np.ndarray, texts: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Entropy of the probabilities of the kinds of answers that were drawn, nats: `M`.

    Kuhn, Gal & Farquhar 2023 (arXiv 2302.09664, equation 2), with kinds by what the parser reads where they ask a model
    for mutual entailment. A kind's probability is the sum over its different texts, and those of a prompt's kinds are
    divided by their sum, so that this is the entropy of a distribution.

    Args:
      kinds: `M×K` from `kinds_of`.
      texts: likewise.
      log_probs: `M×K` log-probability of each answer.
    """
    first = texts == np.arange(texts.shape[1])
    weights = np.where(first, np.exp(log_probs - log_probs.max(axis=1, keepdims=True)), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    of_kind = (_same(kinds) * weights[:, None]).sum(axis=2)
    return np.abs(-(weights * np.log(np.where(weights > 0, of_kind, 1))).sum(axis=1))


def _same(kinds: np.ndarray) -> np.ndarray:
    """`M×K×K`: which two answers are of one kind."""
    return np.asarray(kinds[:, :, None] == kinds[:, None])


def voted(sampled: SampledAnswers, text: Callable[[np.ndarray], str], read: Read, rows: ArrayLike) -> PoolScores:
    """Every measure of `uncertainty.ANSWER_MEASURES`, NaN where nothing was drawn, and the answer with most votes.

    Of kinds with as many votes, the one that was drawn first wins; the first answer of its kind stands for it.
    Arguments as those of `kinds_of`.
    """
    chosen = np.asarray(rows)
    kinds, texts = kinds_of(sampled, text, read, chosen)
    log_probs = -np.asarray(sampled.measures["sequence_nll"], np.float64)[chosen]
    found = {
        "vote_entropy": vote_entropy(kinds),
        "semantic_entropy": semantic_entropy(kinds, texts, log_probs),
        "pairwise_disagreement": pairwise_disagreement(kinds),
    }
    winner = kinds[np.arange(len(chosen)), _same(kinds).sum(axis=2).argmax(axis=1)]
    responses, lengths = (np.asarray(part) for part in (sampled.responses, sampled.lengths))
    size = len(lengths)
    measures = {name: jnp.asarray(_spread(values.astype(np.float32), chosen, size)) for name, values in found.items()}
    tokens = _spread(lengths[chosen, winner], chosen, size)
    answers = _spread(responses[chosen, winner], chosen, size)
    return PoolScores(measures | {"response_tokens": jnp.asarray(tokens)}, jnp.asarray(answers), jnp.asarray(tokens))


def _spread(values: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """An array of `size` rows with the given ones in place; elsewhere NaN, or 0 of whole numbers."""
    nothing = np.nan if np.issubdtype(values.dtype, np.inexact) else 0
    whole = np.full((size, *values.shape[1:]), nothing, values.dtype)
    whole[rows] = values
    return whole
