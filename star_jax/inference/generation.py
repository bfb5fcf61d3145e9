"""Responses, greedy or drawn: one prefill over the prompts, then one token a step until every row has ended.

The lengths of free answers differ widely, and a batch has ended when its longest row has. Where answers may be long,
the rows that go on are therefore moved to a batch of half the size as soon as they fit into it.

Shapes: `B` batch, `P` prompt tokens, `R` new tokens, `V` vocabulary, `K` responses drawn for each prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.inference.sampling import Decoding, Draws, check_decoding, draw_tokens
from star_jax.inference.scoring import TokenStatistics, distribution_statistics
from star_jax.models.decoding import KVCache, decode_step, prefill, step_variables, unstacked
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel

Array = jax.Array

HALVINGS = 2
"""How often a batch is halved at most: each size is a loop more to compile."""

LONG_ANSWER = 64
"""Batches are halved where so many new tokens may be written."""

FEWEST_ROWS = 8
"""A batch is not made smaller than this: reading the weights is then most of a step."""


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
    """Behind token `number`: the token chosen last, which rows have ended, what is written, and the cache before it.

    The rows are those that go on, and as many others as the batch has room for.
    """

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

    From `LONG_ANSWER` on, a response may depend on the others of its batch, as far as products of fewer rows are
    rounded differently.

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
        start = _start(prompts, stop, True, cache, _folded(draws.keys, number))
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
    layers, head, ends = unstacked(model, adapter), output_head(model), jnp.asarray(stop.end_ids)

    def choose(at: _Progress, hidden: Array, cache: KVCache) -> _Progress:
        """Writes the token after hidden states `B×D`."""
        scores = logits(hidden, head)
        if decoding is None or at.keys is None:
            best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        else:
            best = draw_tokens(scores, _folded(at.keys, at.number), decoding)
        token = jnp.where(at.done, 0, best)
        written = _write(at.written, at.number, token, scores, at.done)
        done = at.done | jnp.isin(token, ends)
        return at._replace(number=at.number + 1, token=token, done=done, written=written, cache=cache)

    def advance(at: _Progress) -> _Progress:
        positions = jnp.where(at.done, -1, at.prompt_lengths + at.number - 1)
        return choose(at, *decode_step(model, step_variables(model, adapter, layers), at.token, positions, at.cache))

    def finish(at: _Progress, halvings: int) -> Generated:
        """Writes the rest of the responses."""
        half = at.token.shape[0] // 2
        fewer = half if halvings and half >= FEWEST_ROWS else 0
        at = jax.lax.while_loop(lambda at: (at.number < stop.width) & (jnp.sum(~at.done) > fewer), advance, at)
        if not fewer:
            return at.written
        chosen = jnp.argsort(at.done, stable=True)[:fewer]
        return _put_back(at.written, chosen, finish(_some(at, chosen), halvings - 1))

    return finish(choose(start, last, start.cache), HALVINGS if stop.width >= LONG_ANSWER else 0)


def _folded(keys: Array, number: Array) -> Array:
    """Keys `B` of a number, one of each key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def _some(at: _Progress, chosen: Array) -> _Progress:
    """The progress of `chosen` rows."""
    (layers, slots), (tokens, lengths, statistics) = at.cache, at.written
    of_rows = (at.prompt_lengths, at.token, at.done, tokens, lengths, layers, slots.positions, at.keys)
    prompt_lengths, token, done, tokens, lengths, layers, positions, keys = jax.tree.map(itemgetter(chosen), of_rows)
    statistics = jax.tree.map(lambda leaf: jnp.take(leaf, chosen, axis=-2), statistics)
    cache = KVCache(layers, slots._replace(positions=positions))
    return _Progress(at.number, prompt_lengths, token, done, Generated(tokens, lengths, statistics), cache, keys)


def _put_back(whole: Generated, chosen: Array, part: Generated) -> Generated:
    """`whole` with the rows that were `chosen` from it replaced by those of `part`."""
    tokens, lengths = whole.tokens.at[chosen].set(part.tokens), whole.lengths.at[chosen].set(part.lengths)
    statistics = jax.tree.map(lambda leaf, new: leaf.at[..., chosen, :].set(new), whole.statistics, part.statistics)
    return Generated(tokens, lengths, statistics)


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
