"""Short vectors for gradients: what each example, with the answer a model gives it, would do to the adapter.

Shapes: `N` examples, `B` batch, `T` tokens, `P` entries of an adapter's factors, `W` width of a sketch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.config import TrainingConfig
from star_jax.data.batching import Batch, Shape, sequence_batches
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.batched import BatchLog, map_batches
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter, Factors
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, data_mesh, replicated
from star_jax.training.losses import token_losses

Array = jax.Array

SKETCH_SEED = 0
"""Seed of the sketch's buckets and signs: the same for every call, so that sketches of several rounds compare."""

_PLAIN = TrainingConfig()
"""Cross-entropy alone: no smoothing and no penalty, whatever the training has."""


def gradient_sketches(
    model: LanguageModel,
    adapter: Adapter,
    rows: Sequence[TokenizedExample],
    shapes: Sequence[Shape],
    width: int,
    on_batch: Callable[[int], None] = lambda rows: None,
    log: BatchLog | None = None,
) -> Array:
    """Sketches of each example's gradient, on all local devices, dropout off.

    The gradient is that of −log p(response | prompt), in nats, with respect to the adapter's factors. One example after
    the other is differentiated on a device, so that memory holds one gradient; it takes about as long as an epoch of
    training in batches of one.

    Args:
      model: decoder and frozen weights.
      adapter: whose factors the gradient is taken of.
      rows: prompts, each with a response behind it.
      shapes: of batches of rows.
      width: W.
      on_batch: told the number of examples of each batch.
      log: keeps what the batches give as it comes.

    Returns:
      `N×W` float32: a count sketch (Charikar et al. 2002; Weinberger et al. 2009, arXiv 0902.2206), which adds each
      entry of the gradient, with a random sign, to a random one of W sums, so that inner products are kept on average.
    """
    shared = replicated((model, adapter))

    def run(batch: Batch) -> Array:
        inputs = (batch.tokens, batch.prompt_lengths, np.maximum(batch.lengths, 1))
        return _sketch(shared, inputs, width=width)

    found: Array = map_batches(run, sequence_batches(rows, shapes, data_mesh().size), 1, len(rows), on_batch, log)
    return found


@partial(jax.jit, static_argnames=("width",))
def _sketch(shared: Any, rows: Any, *, width: int) -> Array:
    def sketch(shared: Any, rows: Any) -> Array:
        model, adapter = shared
        places = _places(adapter.weights)

        def of_row(row: Any) -> Array:
            tokens, prompt_length, length = (leaf[None] for leaf in row)
            inputs = SequenceInputs(tokens, prompt_length, length)

            def loss_of(weights: Factors) -> Array:
                hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, None)
                mask = response_mask(inputs)
                return token_losses(hidden, next_tokens(inputs), mask, output_head(model), _PLAIN).penalised

            return count_sketch(jax.grad(loss_of)(adapter.weights), places, width)

        return jax.lax.map(of_row, rows)

    return by_rows(sketch, shared, rows)


def _places(factors: Factors) -> Factors:
    """Random bits for every entry: the lowest is its sign, the others choose its sum."""
    leaves, tree = jax.tree.flatten(factors)
    keys = jax.random.split(jax.random.key(SKETCH_SEED), len(leaves))
    found = [jax.random.bits(key, leaf.shape, jnp.uint32) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, found)


def count_sketch(values: Factors, places: Factors, width: int) -> Array:
    """The count sketch `W` of a tree of P numbers.

    Args:
      values: float32.
      places: random uint32 of the same shapes.
      width: W.
    """
    total = jnp.zeros(width)
    for value, bits in zip(jax.tree.leaves(values), jax.tree.leaves(places), strict=True):
        signed = jnp.where(bits & 1, value, -value).reshape(-1)
        total += jax.ops.segment_sum(signed, ((bits >> 1) % width).astype(jnp.int32).reshape(-1), width)
    return total
