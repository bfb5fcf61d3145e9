"""Operations, memory traffic and traffic between devices of a batch, by formula: for one device.

A multiply and an add are two operations, and products alone count. Layers are counted as often as they are run:
compilers count the body of a loop once. What a program computes of padding is counted, for it takes its time.

- projections: 2 · P · M, P the weights that a token meets in all layers, M tokens;
- attention: 4 · H·d · pairs a layer, pairs of a query and a key up to it;
- adapter, where it is no part of the weights: 2 · r · (I + O) · M a projection;
- head: 2 · V · D for each token that is predicted.

A training step takes the gradient of its inputs too, the same products again (attention's twice), and that of the
adapter's factors; where it rematerialises, the forward pass once more.

Shapes: `L` layers, `I` and `O` input and output width, `r` rank, `D` model width, `V` vocabulary, `H` heads, `G`
key-value heads, `d` head width, `M` tokens, `K` samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from star_jax.checkpoints.tensor_shapes import expert_shapes, projection_shapes, router_shape
from star_jax.config import ExperimentConfig
from star_jax.experiment.sizes import QUANTISED_BITS, adapter_bytes
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lm_head import FEWEST_POSITIONS, LOGITS_AT_ONCE, LOGITS_ELSEWHERE
from star_jax.planning.programs import Program

FLOAT32 = 4

GRADIENTS = ("train", "sketch")
"""Kinds of programs with a backward pass."""


class Sizes(NamedTuple):
    """What the formulas know of a model.

    Attributes:
      shape: of it.
      item: bytes of a number.
      stored: weights of all layers' projections, experts included.
      met: those of them that a token meets.
      widths: Σ of input and output widths of a layer's projections.
      layers: bytes of all layers' projections as they lie in memory.
      head: bytes of the output projection.
      outputs: Σ of the output widths alone.
      low: weights of the adapter, all layers together.
      merged: whether a pass without dropout has the adapter inside the weights.
      quantised: whether weights are made wider before each product.
    """

    shape: TransformerConfig
    item: int
    stored: int
    met: int
    widths: int
    layers: int
    head: int
    outputs: int
    low: int
    merged: bool
    quantised: bool


def sizes_of(config: ExperimentConfig, shape: TransformerConfig) -> Sizes:
    """The sizes of a model with the experiment's adapter and weights."""
    item, depth = jnp.dtype(shape.dtype).itemsize, shape.num_hidden_layers
    kernels = projection_shapes(shape)
    dense = sum(fan_in * out for fan_in, out in kernels.values())
    widths = sum(sum(pair) for pair in kernels.values())
    outputs = sum(out for _, out in kernels.values())
    stored = met = dense
    if shape.experts is not None:
        expert = sum(fan_in * out for fan_in, out in expert_shapes(shape).values())
        router = router_shape(shape)[0] * router_shape(shape)[1]
        stored, met = dense + shape.experts.count * expert + router, dense + shape.experts.per_token * expert + router
        widths += shape.experts.per_token * sum(sum(pair) for pair in expert_shapes(shape).values())
        outputs += shape.experts.per_token * sum(out for out, _ in expert_shapes(shape).values())
    bits = QUANTISED_BITS[config.model.quantization]
    return Sizes(
        shape=shape,
        item=item,
        stored=depth * stored,
        met=depth * met,
        widths=widths,
        layers=depth * stored * (8 * item if bits is None else bits) // 8,
        head=shape.vocab_size * shape.hidden_size * item,
        outputs=outputs,
        low=adapter_bytes(shape, config.lora.rank, config.lora.targets) // FLOAT32,
        merged=item == FLOAT32 and bits is None,
        quantised=bits is not None,
    )


def inner_width(shape: TransformerConfig) -> int:
    """Inner width of the MLP, or of all experts that a token goes through."""
    experts = shape.experts
    return shape.intermediate_size if experts is None else experts.per_token * experts.intermediate_size


class Work(NamedTuple):
    """What one device does for one batch.

    Attributes:
      flops: operations.
      moved: bytes between its memory and it.
      sent: collective -> bytes that it gets from other devices.
    """

    flops: float
    moved: float
    sent: Mapping[str, float]


def work_of(program: Program, sizes: Sizes, config: ExperimentConfig, mesh: tuple[int, int], written: float) -> Work:
    """The work of one batch.

    Args:
      program: what is run.
      sizes: of the model.
      config: the experiment.
      mesh: devices along `data` and `fsdp`.
      written: new tokens of each answer, of a generation.
    """
    if program.kind in GRADIENTS:
        return _training(program, sizes, config, mesh)
    if program.kind == "generate":
        return _generation(program, sizes, mesh, written)
    return _forward(program, sizes, mesh, program.shape.capacity, program.predicted)


def causal_pairs(rows: float, tokens: float) -> float:
    """Pairs of a query and a key up to it, in so many rows with so many tokens altogether, all as long."""
    each = tokens / rows
    return rows * each * (each + 1) / 2


def _forward(program: Program, sizes: Sizes, mesh: tuple[int, int], tokens: float, predicted: float) -> Work:
    """A pass over whole rows, K times."""
    shape, samples = sizes.shape, program.samples
    read = samples * tokens
    merged = sizes.merged and samples == 1
    pairs = samples * causal_pairs(program.shape.rows, tokens)
    flops = 2 * sizes.met * read + 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * pairs
    flops += 2 * sizes.low * read if not merged else 0
    flops += 2 * shape.vocab_size * shape.hidden_size * samples * predicted
    moved = _weights_moved(sizes, mesh[1]) + _activations_moved(sizes, read) + _head_moved(sizes, predicted, samples)
    return Work(flops, moved, _gathered(sizes, mesh, 1))


def _training(program: Program, sizes: Sizes, config: ExperimentConfig, mesh: tuple[int, int]) -> Work:
    """A step: forward, gradient of inputs and of the adapter, and the optimiser."""
    shape, tokens, again = sizes.shape, program.shape.capacity, config.training.rematerialise
    passes = 2 + again
    pairs = causal_pairs(program.shape.rows, tokens)
    attention = 4 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * pairs
    flops = passes * 2 * sizes.met * tokens + (3 + again) * attention + (3 + again) * 2 * sizes.low * tokens
    flops += 2 * 2 * shape.vocab_size * shape.hidden_size * program.predicted
    moved = passes * _weights_moved(sizes, mesh[1]) + (3 + again) * _activations_moved(sizes, tokens)
    # Gradient, weights and both moments are read and written.
    moved += 2 * _head_moved(sizes, program.predicted, 1) + 8 * FLOAT32 * sizes.low / mesh[1]
    sent = _gathered(sizes, mesh, passes)
    # Summed whole over all devices, so that sums are rounded alike on every mesh; a ring takes twice the array.
    if mesh != (1, 1):
        sent["all-reduce of the adapter's gradient"] = 2 * FLOAT32 * sizes.low * _others(mesh[0] * mesh[1])
    return Work(flops, moved, sent)


def _generation(program: Program, sizes: Sizes, mesh: tuple[int, int], written: float) -> Work:
    """The prompts, then one token a row and step.

    Kernels stay where they are: the devices that share a model put their rows together before each product, multiply
    all of them with their part, and send the results back to whose rows they are.
    """
    shape, rows = sizes.shape, program.shape.rows
    before = _forward(program, sizes, mesh, program.shape.capacity, rows)
    steps = max(0.0, written - 1)
    slots = program.shape.width + written / 2
    heads = shape.num_attention_heads * shape.head_dim
    flops = 2 * sizes.met + 4 * shape.num_hidden_layers * heads * slots + 2 * shape.vocab_size * shape.hidden_size
    flops += 2 * sizes.low if not sizes.merged else 0
    cache = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * sizes.item
    low = FLOAT32 * sizes.low if not sizes.merged else 0
    moved = (sizes.layers + low) / mesh[1] + sizes.head + rows * (slots * cache + 4 * FLOAT32 * shape.vocab_size)
    read = sizes.item * (2 * shape.hidden_size + heads + inner_width(shape))
    parts = {
        "all-gather of rows": rows * (mesh[1] - 1) * read,
        "all-to-all of results": rows * _others(mesh[1]) * sizes.item * sizes.outputs,
    }
    sent = {name: shape.num_hidden_layers * size * steps for name, size in parts.items() if size}
    sent |= {name: size + sent.get(name, 0.0) for name, size in before.sent.items()}
    return Work(before.flops + rows * flops * steps, before.moved + moved * steps, sent)


def _others(devices: int) -> float:
    """The share of an array that other devices have."""
    return (devices - 1) / devices


def _gathered(sizes: Sizes, mesh: tuple[int, int], passes: int) -> dict[str, float]:
    """Each layer's kernels are gathered once a pass."""
    size = passes * (sizes.layers + FLOAT32 * sizes.low) * _others(mesh[1])
    return {"all-gather of a layer's kernels": size} if size else {}


def _weights_moved(sizes: Sizes, fsdp: int) -> float:
    """Read once; where they are gathered or made wider, written and read once more."""
    wide = sizes.stored * sizes.item
    return sizes.layers + FLOAT32 * sizes.low + 2 * wide * (sizes.quantised or fsdp > 1)


def _activations_moved(sizes: Sizes, tokens: float) -> float:
    """What projections read and write, and as much again of the stream for norms and sums."""
    shape = sizes.shape
    return tokens * shape.num_hidden_layers * sizes.item * (sizes.widths + 8 * shape.hidden_size)


def _head_moved(sizes: Sizes, predicted: float, samples: int) -> float:
    """The head once a chunk of positions, and logits four times: written, and read for their largest, sum and mean."""
    chunk = chunk_positions(sizes, samples, "elsewhere")
    return predicted / chunk * sizes.head + 4 * FLOAT32 * samples * predicted * sizes.shape.vocab_size


def chunk_positions(sizes: Sizes, samples: int, platform: str) -> int:
    """Positions whose logits are held at once (`models.lm_head.chunk_size`)."""
    most = LOGITS_AT_ONCE.get(platform, LOGITS_ELSEWHERE)
    return max(FEWEST_POSITIONS, most // (sizes.shape.vocab_size * samples))
