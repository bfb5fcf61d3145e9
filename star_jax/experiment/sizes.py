"""What settings ask for in bytes, against what there is: refused by arithmetic, before any memory is taken.

The figures are what is held at the least, so that nothing is refused that would fit; what fits barely may still fail.

Shapes: `L` layers, `D` width of the model, `r` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from star_jax.checkpoints.tensor_shapes import projection_shapes
from star_jax.config import ExperimentConfig, LoraConfig, TrainingConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.step_shapes import SIMULATED_STEPS
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.projections import choose_modules
from star_jax.parallel.mesh import parts_of_a_model

GIGABYTE = 10**9

QUANTISED_BITS = {"none": None, "int8": 8, "nf4": 4}
"""Bits of a weight of a projection; None for those of the model's type."""

ADAPTER_COPIES = 4
"""Arrays of the size of an adapter that training holds: weights, gradient, and Adam's two moments."""

GENERATED_ROW_BYTES = 500
"""Of an example of the generated benchmark: texts, tokens and the objects around them."""


class Demand(NamedTuple):
    """What a setting asks for.

    Attributes:
      setting: its dotted name, or its flag.
      value: as it is set.
      what: is held because of it.
      size: bytes, at the least.
    """

    setting: str
    value: object
    what: str
    size: int


def refuse_what_does_not_fit(demands: Sequence[Demand], room: float) -> None:
    """Refuses the first setting that asks for more than there is.

    Args:
      demands: each by itself; they are not added up.
      room: bytes of memory.

    Raises:
      ConfigError: naming the setting, and both sizes.
    """
    for setting, value, what, size in demands:
        if size > room:
            raise ConfigError(
                f"{setting} is {value}: {what} would take {_gigabytes(size)} GB at the least, and there are "
                f"{_gigabytes(int(room))} GB of memory; choose a smaller one"
            )


def weight_bytes(shape: TransformerConfig, quantization: str = "none", parts: int = 1) -> int:
    """Bytes of a model's embedding, head and projections, on one of so many devices that share it."""
    item = jnp.dtype(shape.dtype).itemsize
    tables = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    kernels = shape.num_hidden_layers * sum(fan_in * features for fan_in, features in projection_shapes(shape).values())
    bits = QUANTISED_BITS[quantization] or 8 * item
    return tables * item + kernels * bits // (8 * parts)


def adapter_bytes(shape: TransformerConfig, rank: int, targets: Sequence[str]) -> int:
    """Bytes of a LoRA, float32: A `L×in×r` and B `L×r×out` of every projection that a target names."""
    widths = projection_shapes(shape)
    chosen = choose_modules(shape.num_hidden_layers, list(widths), targets)
    return 4 * rank * shape.num_hidden_layers * sum(sum(widths[name]) for name in chosen)


def cache_bytes(shape: TransformerConfig, rows: int, tokens: int) -> int:
    """Bytes of keys and values of all layers while `rows` responses are written, prompts included."""
    width = 2 * shape.num_key_value_heads * shape.head_dim * jnp.dtype(shape.dtype).itemsize
    return rows * tokens * shape.num_hidden_layers * width


def hidden_bytes(shape: TransformerConfig, tokens: int) -> int:
    """Bytes of the hidden states of one layer."""
    return tokens * shape.hidden_size * jnp.dtype(shape.dtype).itemsize


def experiment_demands(config: ExperimentConfig, shape: TransformerConfig) -> list[Demand]:
    """What the settings of an experiment ask for, as far as the model's shape tells."""
    demands = [
        Demand(
            "model.path",
            config.model.path,
            "its weights",
            weight_bytes(shape, config.model.quantization, parts_of_a_model()),
        ),
        *training_demands(config.training, None if config.model.adapter else config.lora, shape),
        Demand(
            "data.max_response_tokens",
            config.data.max_response_tokens,
            "keys and values of one response",
            cache_bytes(shape, 1, config.data.max_response_tokens),
        ),
    ]
    if config.data.train is None:
        size = config.data.pool_size * GENERATED_ROW_BYTES
        demands.append(Demand("data.pool_size", config.data.pool_size, "the pool", size))
    return demands


def training_demands(training: TrainingConfig, lora: LoraConfig | None, shape: TransformerConfig) -> list[Demand]:
    """What a training asks for: a step of it, and its adapter.

    Args:
      training: batch size and replay rows.
      lora: rank and targets of a fresh adapter; None where training goes on from one that is there.
      shape: of the model.
    """
    step = training.batch_size + training.replay_rows
    # A row has a token at least, and each layer's input is kept for the backward pass. The shapes of steps are chosen
    # from random ones, which are lists of whole numbers.
    step_bytes = step * 8 * SIMULATED_STEPS + hidden_bytes(shape, step) * shape.num_hidden_layers
    name = "batch_size" if training.batch_size >= training.replay_rows else "replay_rows"
    demands = [Demand(f"training.{name}", getattr(training, name), "a training step", step_bytes)]
    if lora is not None:
        adapter = ADAPTER_COPIES * adapter_bytes(shape, lora.rank, lora.targets) // parts_of_a_model()
        demands.append(Demand("lora.rank", lora.rank, "an adapter in training", adapter))
    return demands


def batch_demands(config: ExperimentConfig, shape: TransformerConfig, shapes: Shapes) -> list[Demand]:
    """What its batches ask for, on one device, once their shapes are known."""
    response = config.data.max_response_tokens
    written = max((cache_bytes(shape, one.rows, one.width + response) for one in shapes.prompts), default=0)
    scored = max((hidden_bytes(shape, one.capacity) for one in shapes.sequences), default=0)
    return [
        Demand("generation.batch_size", config.generation.batch_size, "keys and values of a batch", written),
        Demand("scoring.batch_size", config.scoring.batch_size, "one layer of a batch", scored),
    ]


def _gigabytes(size: int) -> str:
    return (
        f"{size / GIGABYTE:,.1f}" if size < 10**18 else f"{size // GIGABYTE:.1e}" if size < 10**300 else "far too many"
    )
