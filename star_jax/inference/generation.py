"""Greedy generation: one prefill over the prompts, then one token a step until every row has ended.

Shapes: `B` batch, `P` prompt tokens, `R` new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.head import logits, output_head
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import KVCache, LanguageModel, empty_cache, positions_of

Array = jax.Array


class _Step(NamedTuple):
    number: Array
    token: Array
    done: Array
    tokens: Array
    lengths: Array
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
) -> tuple[Array, Array]:
    """The most probable token at each step.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      prompts: `B×P` int32, right-padded.
      prompt_lengths: `B` int32.
      width: R, most new tokens, end-of-sequence included.
      eos_id: the token that ends a row, or several that do; it is part of the response.
      row_mask: `B` bool; rows that only fill the batch up are not waited for.

    Returns:
      Responses `B×R`, 0 behind their end, and their lengths `B`, end-of-sequence included.
    """
    batch, prompt_width = prompts.shape
    variables = with_adapter(model.params, adapter)
    head = output_head(model)
    ends = jnp.asarray(eos_id)
    cache = empty_cache(model.config, batch, prompt_width + width)

    hidden, cache = _advance(model, variables, prompts, positions_of(prompt_lengths, prompt_width), cache)
    last = jnp.take_along_axis(hidden, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]
    first = jnp.argmax(logits(last, head), axis=-1).astype(jnp.int32)
    done = jnp.zeros(batch, bool) if row_mask is None else ~row_mask

    def unfinished(step: _Step) -> Array:
        return (step.number < width) & ~jnp.all(step.done)

    def advance(step: _Step) -> _Step:
        token = jnp.where(step.done, 0, step.token)
        tokens = jax.lax.dynamic_update_slice(step.tokens, token[:, None], (0, step.number))
        lengths = step.lengths + ~step.done
        done = step.done | jnp.isin(token, ends)
        positions = jnp.where(done, -1, prompt_lengths + step.number)[:, None]
        hidden, cache = _advance(model, variables, token[:, None], positions, step.cache)
        following = jnp.argmax(logits(hidden[:, 0], head), axis=-1).astype(jnp.int32)
        return _Step(step.number + 1, following, done, tokens, lengths, cache)

    start = _Step(
        jnp.zeros((), jnp.int32),
        first,
        done,
        jnp.zeros((batch, width), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        cache,
    )
    end = jax.lax.while_loop(unfinished, advance, start)
    return end.tokens, end.lengths


def _advance(
    model: LanguageModel, variables: dict[str, Any], tokens: Array, positions: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    result: Any = model.decoder.apply(variables, tokens, positions, cache)
    return result
