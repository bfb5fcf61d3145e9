"""What examples would do to an adapter: short vectors for their gradients, and the curvature that they give the loss.

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
from star_jax.models.lm_head import OutputHead, at_positions, chunk_size, logits, output_head
from star_jax.models.lora import Adapter, Factors
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import ALIKE, ROWS, by_rows, data_mesh, placed
from star_jax.parallel.parts import whole
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
    shared = placed((model, adapter))

    def run(batch: Batch) -> Array:
        inputs = (batch.tokens, batch.prompt_lengths, np.maximum(batch.lengths, 1))
        return _sketch(shared, inputs, width=width)

    found: Array = map_batches(run, sequence_batches(rows, shapes, data_mesh().size), 1, len(rows), on_batch, log)
    return found


@partial(jax.jit, static_argnames=("width",))
def _sketch(shared: Any, rows: Any, *, width: int) -> Array:
    def sketch(shared: Any, rows: Any) -> Array:
        # The adapter at once, for the gradient of a row is not to be summed over those of other devices.
        model, adapter = shared[0], whole(shared[1])
        places = _places(adapter.weights)

        def of_row(row: Any) -> Array:
            return count_sketch(_gradient(model, adapter, row), places, width)

        return jax.lax.map(of_row, rows)

    return by_rows(sketch, shared, rows)


def _gradient(model: LanguageModel, adapter: Adapter, row: Any, key: Array | None = None) -> Factors:
    """Of the negative log-likelihood of one row's response; with a key, of tokens drawn from the model in its place."""
    tokens, prompt_length, length = (leaf[None] for leaf in row)
    inputs, head = SequenceInputs(tokens, prompt_length, length), output_head(model)

    def loss_of(weights: Factors) -> Array:
        hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, None)
        mask = response_mask(inputs)
        targets = next_tokens(inputs) if key is None else _drawn_tokens(key, jax.lax.stop_gradient(hidden), mask, head)
        return token_losses(hidden, targets, mask, head, _PLAIN).penalised

    gradient: Factors = jax.grad(loss_of)(adapter.weights)
    return gradient


def _drawn_tokens(key: Array, hidden: Array, mask: Array, head: OutputHead) -> Array:
    """A token from the model's distribution at each position of a row, `1×T` int32; 0 where the mask is False."""

    def draw(states: Array, uniform: Array) -> Array:
        below = jnp.cumsum(jax.nn.softmax(logits(states, head)), axis=-1)
        return jnp.sum(below < uniform[:, None] * below[:, -1:], axis=-1, dtype=jnp.int32)

    positions = jnp.arange(mask.shape[1])
    uniform = jax.vmap(lambda place: jax.random.uniform(jax.random.fold_in(key, place)))(positions)
    return at_positions(draw, mask, hidden, uniform[None], chunk=chunk_size(head))


def fisher_diagonal(
    key: Array,
    model: LanguageModel,
    adapter: Adapter,
    rows: Sequence[TokenizedExample],
    shapes: Sequence[Shape],
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Factors:
    """The diagonal of the Fisher information of an adapter's factors, summed over examples, dropout off.

    F = Σ_n E[g_n²] with g_n the gradient of log p(response of n | prompt) and the expectation over what the model might
    say in place of each response token. One draw stands for the expectation, which is right on average; the labels
    themselves would not be, where the model fits them well (Kunstner et al. 2019, arXiv 1905.12558).

    Args:
      key: PRNG key of the draws; a row's depends on its number, and not on its batch.
      model: decoder and frozen weights.
      adapter: trained.
      rows: labelled examples.
      shapes: of batches of rows.
      on_batch: told the number of examples of each batch.

    Returns:
      Float32, shaped as `adapter.weights`.
    """
    shared = placed((model, adapter, key))
    total: Factors = jax.tree.map(jnp.zeros_like, adapter.weights)
    for batch in sequence_batches(rows, shapes, data_mesh().size):
        inputs = (batch.tokens, batch.prompt_lengths, np.maximum(batch.lengths, 1))
        total = jax.block_until_ready(jax.tree.map(jnp.add, total, _squares(shared, (inputs, batch.index))))
        on_batch(int(batch.row_mask.sum()))
    return total


@jax.jit
def _squares(shared: Any, rows: Any) -> Factors:
    """Squared gradients, summed over the rows of all devices; a row that only fills the batch up has none."""

    def squares(shared: Any, rows: Any) -> Factors:
        model, adapter, key = shared[0], whole(shared[1]), shared[2]

        def add(total: Factors, row: Any) -> tuple[Factors, None]:
            inputs, index = row
            gradient = _gradient(model, adapter, inputs, jax.random.fold_in(key, index))
            return jax.tree.map(lambda one, other: one + jnp.square(other), total, gradient), None

        total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, adapter.weights), rows)
        return jax.lax.psum(total, ROWS)

    summed: Factors = by_rows(squares, shared, rows, out=ALIKE)
    return summed


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
