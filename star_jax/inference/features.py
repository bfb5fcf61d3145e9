"""Vectors for prompts: hidden states of the last layer, pooled, and projected at random where that is asked for.

What is read is the prompt alone: a causal model's states there know of no response.

Shapes: `N` prompts, `B` batch, `T` tokens, `D` model width, `P` width of the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch, Shape, prompt_batches
from star_jax.inference.batched import BatchLog, map_batches
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, data_mesh, placed, replicated

Array = jax.Array
Pooling = Literal["mean", "weighted", "last"]

PROJECTION_SEED = 0
"""Seed of the projection's matrix: the same for every call, so that embeddings of several rounds compare."""


class Readout(NamedTuple):
    """How hidden states become a vector.

    Attributes:
      pooling: `mean` over the tokens of the prompt, `weighted` by their positions 1, 2, …, or the state of its `last`
        token.
      projection: P, width of a random projection; None for none.
    """

    pooling: Pooling = "mean"
    projection: int | None = None


def embed_prompts(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Sequence[np.ndarray],
    shapes: Sequence[Shape],
    readouts: Sequence[Readout],
    on_batch: Callable[[int], None] = lambda rows: None,
    log: BatchLog | None = None,
) -> tuple[Array, ...]:
    """Embeds prompts on all local devices, by one pass for all readouts.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      prompts: tokens of each prompt.
      shapes: of batches of prompts.
      readouts: what is read from the hidden states.
      on_batch: told the number of prompts of each batch.
      log: keeps what the batches give as it comes.

    Returns:
      For each readout `N×D` float32, or `N×P` with a projection by a matrix of entries N(0, 1/P), which keeps distances
      on average (Johnson & Lindenstrauss 1984).
    """
    merged = merge_adapter(placed(model), placed(adapter))
    matrices = {
        width: replicated(
            jax.random.normal(jax.random.key(PROJECTION_SEED), (model.config.hidden_size, width)) / jnp.sqrt(width)
        )
        for width in {readout.projection for readout in readouts}
        if width is not None
    }

    def run(batch: Batch) -> tuple[Array, ...]:
        rows, capacity = (batch.tokens, np.maximum(batch.lengths, 1)), batch.capacity + len(batch.lengths)
        return _embed((*merged, matrices), rows, capacity=capacity, readouts=tuple(readouts))

    batches = prompt_batches(prompts, shapes, data_mesh().size)
    found: tuple[Array, ...] = map_batches(run, batches, 1, len(prompts), on_batch, log)
    return found


@partial(jax.jit, static_argnames=("capacity", "readouts"))
def _embed(shared: Any, rows: Any, *, capacity: int, readouts: tuple[Readout, ...]) -> tuple[Array, ...]:
    def embed(shared: Any, rows: Any) -> tuple[Array, ...]:
        (model, adapter, matrices), (tokens, lengths) = shared, rows
        hidden = hidden_states(model, adapter, SequenceInputs(tokens, lengths, lengths), None, capacity)
        hidden = hidden.astype(jnp.float32)
        real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        hidden = jnp.where(real[..., None], hidden, 0)
        place = jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.float32)
        pooled = {
            "last": jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0],
            "mean": hidden.sum(axis=1) / lengths[:, None],
            "weighted": (hidden * place[:, None]).sum(axis=1) / (lengths * (lengths + 1) / 2)[:, None],
        }
        return tuple(
            pooled[pooling]
            if width is None
            else jnp.matmul(pooled[pooling], matrices[width], precision=jax.lax.Precision.HIGHEST)
            for pooling, width in readouts
        )

    return by_rows(embed, shared, rows)
