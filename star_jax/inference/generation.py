"""Greedy generation: one prefill over the prompts, then one token a step until every row has ended.

Shapes: `B` batch, `P` prompt tokens, `R` new tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.inference.scoring import TokenStatistics, distribution_statistics
from star_jax.models.decoding import KVCache, at_hand, prefill, step, unstacked
from star_jax.models.head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel

Array = jax.Array


class Generated(NamedTuple):
    """Responses of a batch.

    Attributes:
      tokens: `B×R` int32, 0 behind their end.
      lengths: `B` int32, the token that ends a response included.
      statistics: what the model said about each token as it wrote it, leaves `1×B×R`, 0 behind the end; None where
        nobody asked.
    """

    tokens: Array
    lengths: Array
    statistics: TokenStatistics | None = None


class _Progress(NamedTuple):
    """Behind token `number`: the token chosen last, which rows have ended, what is written, and the cache before it."""

    number: Array
    token: Array
    done: Array
    written: Generated
    cache: KVCache


def generate(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Array,
    prompt_lengths: Array,
    *,
    width: int,
    eos_id: int | Sequence[int] | Array,
    row_mask: Array | None = None,
    slots: int | None = None,
    scored: bool = False,
) -> Generated:
    """The most probable token at each step.

    Args:
      model: decoder and frozen weights; `models.folding` makes one that writes faster.
      adapter: None for the base model.
      prompts: `B×P` int32, right-padded.
      prompt_lengths: `B` int32.
      width: R, most new tokens, end-of-sequence included.
      eos_id: the token that ends a row, or several that do; it is part of the response.
      row_mask: `B` bool; rows that only fill the batch up are not waited for.
      slots: tokens of the prompts that are computed, at least those of all of them; None for B·P.
      scored: whether the statistics of the tokens are wanted too.
    """
    batch, prompt_width = prompts.shape
    layers, head, ends = unstacked(model, adapter), output_head(model), jnp.asarray(eos_id)

    def choose(at: _Progress, hidden: Array, cache: KVCache) -> _Progress:
        """Writes the token after hidden states `B×D`."""
        scores = logits(hidden, head)
        token = jnp.where(at.done, 0, jnp.argmax(scores, axis=-1).astype(jnp.int32))
        written = _write(at.written, at.number, token, scores, at.done)
        return _Progress(at.number + 1, token, at.done | jnp.isin(token, ends), written, cache)

    def unfinished(at: _Progress) -> Array:
        return (at.number < width) & ~jnp.all(at.done)

    def advance(at: _Progress) -> _Progress:
        positions = jnp.where(at.done, -1, prompt_lengths + at.number - 1)
        return choose(at, *step(model, at_hand(model, adapter, layers), at.token, positions, at.cache))

    last, cache = prefill(model, adapter, prompts, prompt_lengths, prompt_width + width - 1, slots)
    unseen = jnp.zeros((1, batch, width))
    nothing = TokenStatistics(unseen, unseen, unseen, unseen, unseen[0]) if scored else None
    blank = jnp.zeros((batch, width), jnp.int32)
    done = jnp.zeros(batch, bool) if row_mask is None else ~row_mask
    start = _Progress(
        jnp.zeros((), jnp.int32), blank[:, 0], done, Generated(blank, jnp.zeros(batch, jnp.int32), nothing), cache
    )
    return jax.lax.while_loop(unfinished, advance, choose(start, last, cache)).written


def _write(written: Generated, number: Array, token: Array, scores: Array, done: Array) -> Generated:
    """Adds a column: `token` `B`, chosen by `scores` `B×V`; rows that are `done` have none."""

    def column(whole: Array, part: Array) -> Array:
        column = jnp.where(done, 0, part)[..., None]
        return jax.lax.dynamic_update_slice_in_dim(whole, column, number, axis=whole.ndim - 1)

    statistics = written.statistics
    if statistics is not None:
        found = distribution_statistics(scores[None], token)
        statistics = jax.tree.map(column, statistics, found)
    return Generated(column(written.tokens, token), written.lengths + ~done, statistics)
