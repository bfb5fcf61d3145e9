"""Vectors for prompts: hidden states of the last layer, pooled, and projected at random where that is asked for.

What is read is the prompt alone: a causal model's states there know of no response.

Shapes: `N` prompts, `B` batch, `T` tokens, `D` model width, `P` width of the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch, Shape, prompt_batches
from star_jax.inference.batched import map_batches
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, data_mesh, replicated

Array = jax.Array
Pooling = Literal["mean", "last"]

PROJECTION_SEED = 0
"""Seed of the projection's matrix: the same for every call, so that embeddings of several rounds compare."""


def embed_prompts(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Sequence[np.ndarray],
    shapes: Sequence[Shape],
    pooling: Pooling = "mean",
    *,
    projection: int | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Array:
    """Embeds prompts on all local devices.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      prompts: tokens of each prompt.
      shapes: of batches of prompts.
      pooling: `mean` over the tokens of the prompt, or the state of its `last` token.
      projection: P; None for none.
      on_batch: told the number of prompts of each batch.

    Returns:
      `N×D` float32, or `N×P` with a projection by a matrix of entries N(0, 1/P), which keeps distances on average
      (Johnson & Lindenstrauss 1984).
    """
    model, adapter = merge_adapter(replicated(model), replicated(adapter))
    matrix = None
    if projection is not None:
        shape = (model.config.hidden_size, projection)
        matrix = replicated(jax.random.normal(jax.random.key(PROJECTION_SEED), shape) / jnp.sqrt(projection))

    def run(batch: Batch) -> Array:
        rows = (batch.tokens, np.maximum(batch.lengths, 1))
        return _embed((model, adapter, matrix), rows, capacity=batch.capacity + len(batch.lengths), pooling=pooling)

    return map_batches(run, list(prompt_batches(prompts, shapes, data_mesh().size)), 1, len(prompts), on_batch)


@partial(jax.jit, static_argnames=("capacity", "pooling"))
def _embed(shared: Any, rows: Any, *, capacity: int, pooling: Pooling) -> Array:
    def embed(shared: Any, rows: Any) -> Array:
        (model, adapter, matrix), (tokens, lengths) = shared, rows
        hidden = hidden_states(model, adapter, SequenceInputs(tokens, lengths, lengths), None, capacity)
        hidden = hidden.astype(jnp.float32)
        if pooling == "last":
            pooled = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        else:
            real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
            pooled = jnp.where(real[..., None], hidden, 0).sum(axis=1) / lengths[:, None]
        return pooled if matrix is None else jnp.matmul(pooled, matrix, precision=jax.lax.Precision.HIGHEST)

    return by_rows(embed, shared, rows)
