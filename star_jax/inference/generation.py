"""Responses, greedy or drawn: one prefill over the prompts, then one token a step until every row has ended.

A batch by itself, in one program: for answers that are short. Long ones are for `inference.continuous`.

Shapes: `B` batch, `P` prompt tokens, `R` new tokens, `V` vocabulary, `K` responses drawn for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.inference.sampling import Decoding, Draws, check_decoding, draw_tokens, folded
from star_jax.inference.scoring import TokenStatistics, distribution_statistics
from star_jax.models.decoding import KVCache, decode_step, prefill, step_variables, unstacked
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.parts import anywhere, staying

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


class PromptBatch(NamedTuple):
    """Prompts that are answered together.

    Attributes:
      tokens: `B×P` int32, right-padded.
      lengths: `B` int32.
      row_mask: `B` bool; rows that only fill the batch up are not waited for. None where all are real.
    """

    tokens: Array
    lengths: Array
    row_mask: Array | None = None


class Stop(NamedTuple):
    """Where a response ends.

    Attributes:
      width: R, most new tokens, the one that ends it included.
      end_ids: the token that ends a row, or several that do; it is part of the response.
    """

    width: int
    end_ids: int | Sequence[int] | Array


class _Progress(NamedTuple):
    """Behind token `number`: the token chosen last, which rows have ended, what is written, and the cache before it."""

    number: Array
    prompt_lengths: Array
    token: Array
    done: Array
    written: Generated
    cache: KVCache
    keys: Array | None


def generate(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: PromptBatch,
    stop: Stop,
    *,
    capacity: int | None = None,
    scored: bool = False,
) -> Generated:
    """The most probable token at each step.

    Args:
      model: decoder and frozen weights; `models.merged` makes one that writes faster.
      adapter: None for the base model.
      prompts: `B` of them.
      stop: where responses end; known when it is compiled.
      capacity: tokens of the prompts that are computed, at least those of all of them; None for B·P.
      scored: whether the statistics of the tokens are wanted too.
    """
    hidden, cache = _read(model, adapter, prompts, stop, capacity)
    return _respond(model, adapter, stop, None, _start(prompts, stop, scored, cache, None), hidden)


def sample(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: PromptBatch,
    stop: Stop,
    draws: Draws,
    *,
    capacity: int | None = None,
) -> Generated:
    """K responses to each prompt, drawn token by token; the prompt is read once.

    Args:
      model: as `generate` takes it, like all that is not named here.
      adapter: None for the base model.
      prompts: `B` of them.
      stop: where responses end.
      draws: how tokens are drawn, and with which keys.
      capacity: tokens of the prompts that are computed.

    Returns:
      Responses with leaves `K×B×…`. The statistics are of the model's own distribution, at temperature 1 and without
      a nucleus; those of a token have an axis more, `K×1×B×R`.

    Raises:
      ConfigError: nothing can be drawn that way.
    """
    check_decoding(draws.decoding)
    hidden, cache = _read(model, adapter, prompts, stop, capacity)

    def one(number: Array) -> Generated:
        start = _start(prompts, stop, True, cache, folded(draws.keys, number))
        return _respond(model, adapter, stop, draws.decoding, start, hidden)

    return jax.lax.map(one, jnp.arange(draws.decoding.samples))


def _read(
    model: LanguageModel, adapter: Adapter | None, prompts: PromptBatch, stop: Stop, capacity: int | None
) -> tuple[Array, KVCache]:
    """Hidden states `B×D` behind the prompts, and a cache with room for the responses."""
    slots = prompts.tokens.shape[1] + stop.width - 1
    return prefill(model, adapter, prompts.tokens, prompts.lengths, slots, capacity)


def _start(prompts: PromptBatch, stop: Stop, scored: bool, cache: KVCache, keys: Array | None) -> _Progress:
    """Before the first token."""
    batch = prompts.lengths.shape[0]
    unseen = jnp.zeros((1, batch, stop.width))
    nothing = TokenStatistics(unseen, unseen, unseen, unseen, unseen[0]) if scored else None
    blank = jnp.zeros((batch, stop.width), jnp.int32)
    done = jnp.zeros(batch, bool) if prompts.row_mask is None else ~prompts.row_mask
    written = Generated(blank, jnp.zeros(batch, jnp.int32), nothing)
    return _Progress(jnp.zeros((), jnp.int32), prompts.lengths, blank[:, 0], done, written, cache, keys)


def _respond(
    model: LanguageModel, adapter: Adapter | None, stop: Stop, decoding: Decoding | None, start: _Progress, last: Array
) -> Generated:
    """Writes responses behind prompts that are read, whose hidden states are `last` `B×D`; greedy where not drawn."""
    model, adapter = staying((model, adapter))
    layers, head, ends = unstacked(model, adapter), output_head(model), jnp.asarray(stop.end_ids)

    def choose(at: _Progress, hidden: Array, cache: KVCache) -> _Progress:
        """Writes the token after hidden states `B×D`."""
        scores = logits(hidden, head)
        if decoding is None or at.keys is None:
            best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        else:
            best = draw_tokens(scores, folded(at.keys, at.number), decoding)
        token = jnp.where(at.done, 0, best)
        written = _write(at.written, at.number, token, scores, at.done)
        done = at.done | jnp.isin(token, ends)
        return at._replace(number=at.number + 1, token=token, done=done, written=written, cache=cache)

    def advance(at: _Progress) -> _Progress:
        positions = jnp.where(at.done, -1, at.prompt_lengths + at.number - 1)
        return choose(at, *decode_step(model, step_variables(model, adapter, layers), at.token, positions, at.cache))

    def goes_on(at: _Progress) -> Array:
        return anywhere((at.number < stop.width) & ~jnp.all(at.done), layers)

    return jax.lax.while_loop(goes_on, advance, choose(start, last, start.cache)).written


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
