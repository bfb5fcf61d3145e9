"""What a device holds while a program runs, by part.

Parameters, adapter and moments are counted from the shapes of their arrays and the rule of placement, exactly. Caches,
logits and activations are by formula: what compilers make of them differs by some 20 %.

Shapes: `B` rows, `T` tokens of a row, `M` tokens, `K` samples, `D` model width, `I` inner width, `V` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax

from star_jax.config import ExperimentConfig, LoraConfig, TrainingConfig
from star_jax.experiment.mesh_choice import parameter_shapes
from star_jax.experiment.sizes import cache_bytes
from star_jax.models.architecture import TransformerConfig
from star_jax.models.kernels_apart import MOST_BYTES
from star_jax.models.lora import init_adapter
from star_jax.models.transformer import UNROLLED_LAYERS, Decoder, LanguageModel
from star_jax.ops.quantization import Quantization
from star_jax.parallel.placement import bytes_on_a_device
from star_jax.planning.programs import Program
from star_jax.planning.work import FLOAT32, GRADIENTS, Sizes, chunk_positions, inner_width
from star_jax.training.trainer import init_state


class Arrays(NamedTuple):
    """Shapes of the arrays that programs are given.

    Attributes:
      model: with frozen parameters.
      adapter: a fresh one.
      state: of a training, with weights and moments.
    """

    model: LanguageModel
    adapter: Any
    state: Any


class Held(NamedTuple):
    """Bytes on a device.

    Attributes:
      weights: frozen parameters, with a copy where the adapter is added to them, and one of single layers where a CPU
        writes answers or trains.
      adapter: its factors; in training also gradient and moments.
      cache: keys and values of a generation.
      logits: of the positions that are looked at together.
      activations: what is kept of a pass, and room to compute in.
    """

    weights: float
    adapter: float
    cache: float
    logits: float
    activations: float

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self)


class Compiled(NamedTuple):
    """Bytes of a program on a device.

    Attributes:
      arguments: what it is given.
      temporaries: what it holds besides while it runs.
      total: both, and its results, less those that take the place of arguments; or what the compiler said that it
        takes where that is more than there is.
    """

    arguments: float
    temporaries: float
    total: float


CompileProgram = Callable[[Program, Arrays, int], Compiled | None]
"""What a compiler says of a program with so many devices that share a model; None where it was not asked."""


def arrays_of(config: ExperimentConfig, shape: TransformerConfig) -> Arrays:
    """The shapes of an experiment's arrays; nothing is computed.

    Raises:
      ConfigError: the adapter has a target that the model does not have.
    """
    # Batches do not matter to them, and many are tried.
    training = dataclasses.replace(config.training, batch_size=1, rematerialise=False, replay=None, replay_rows=0)
    return _arrays(shape, config.model.quantization, config.lora, training)


@cache
def _arrays(shape: TransformerConfig, kind: Quantization, lora: LoraConfig, training: TrainingConfig) -> Arrays:
    params = parameter_shapes(shape, kind)
    model = LanguageModel(Decoder(shape), params)
    adapter = jax.eval_shape(partial(init_adapter, config=lora), jax.random.key(0), params)
    start = partial(init_state, lora=lora, config=training)
    return Arrays(model, adapter, jax.eval_shape(start, jax.random.key(0), model)[0])


def held_by(program: Program, sizes: Sizes, arrays: Arrays, config: ExperimentConfig, fsdp: int, platform: str) -> Held:
    """What a device holds while a program runs.

    Args:
      program: what is run.
      sizes: of the model.
      arrays: shapes of the same.
      config: the experiment.
      fsdp: devices that share a model.
      platform: of the device, which decides how many logits are held at once, and whether layers are copied.
    """
    weights = float(bytes_on_a_device(arrays.model.params, fsdp))
    if has_merged_copy(program, sizes):
        weights += kernel_bytes(arrays, fsdp)
    if platform == "cpu" and fsdp == 1:
        weights += sizes.layers * (program.kind == "generate")
        weights += kernel_bytes(arrays, fsdp) * (program.kind == "train" and _has_kernels_apart(arrays, config))
    adapter = float(bytes_on_a_device(arrays.adapter, fsdp))
    if program.kind in GRADIENTS:
        adapter = bytes_on_a_device(arrays.state, fsdp) + 2 * adapter
    return Held(
        weights, adapter, _cache(program, sizes), _logits(program, sizes, platform), _room(program, sizes, config, fsdp)
    )


def has_merged_copy(program: Program, sizes: Sizes) -> bool:
    """Whether the adapter is added to the weights first, in a second copy of them."""
    return sizes.merged and program.samples == 1 and program.kind in ("generate", "score", "choose")


def kernel_bytes(arrays: Arrays, fsdp: int) -> int:
    """Bytes of a model's projections on a device, experts not counted."""
    layers = arrays.model.params["layers"].items()
    kernels = {name: {"kernel": layer["kernel"]} for name, layer in layers if "kernel" in layer}
    return bytes_on_a_device({"layers": kernels}, fsdp)


def _has_kernels_apart(arrays: Arrays, config: ExperimentConfig) -> bool:
    """Whether a CPU trains with arrays of single layers (`models.kernels_apart`)."""
    looped = arrays.model.config.num_hidden_layers > UNROLLED_LAYERS or config.training.rematerialise
    return looped and config.model.quantization == "none" and kernel_bytes(arrays, 1) <= MOST_BYTES


def _cache(program: Program, sizes: Sizes) -> float:
    """Of whole prompts and the longest answers; that of the prompts lies there once more while it is laid out."""
    if program.kind != "generate":
        return 0.0
    rows, width, _ = program.shape
    return float(cache_bytes(sizes.shape, rows, 2 * width + program.written[1] - 1))


def _logits(program: Program, sizes: Sizes, platform: str) -> float:
    """Products, their powers, and what is made of both."""
    if program.kind == "read":
        return 0.0
    chunk = chunk_positions(sizes, program.samples, platform)
    positions = program.shape.rows if program.kind == "generate" else min(chunk, program.shape.capacity)
    return 3.0 * FLOAT32 * program.samples * positions * sizes.shape.vocab_size


def _room(program: Program, sizes: Sizes, config: ExperimentConfig, fsdp: int) -> float:
    """Activations, and kernels as they are multiplied with."""
    shape, (rows, width, tokens) = sizes.shape, program.shape
    inner = inner_width(shape)
    heads, shared = (count * shape.head_dim for count in (shape.num_attention_heads, shape.num_key_value_heads))
    # One layer while it runs: the stream, what attention reads and gives, and the inside of the MLP.
    one = program.samples * tokens * sizes.item * (2 * shape.hidden_size + 2 * heads + 2 * shared + 2 * inner)
    rows_out = program.samples * rows * width * shape.hidden_size * sizes.item
    largest = max(shape.hidden_size, heads) * max(shape.intermediate_size, heads)
    wide = (2 * largest * FLOAT32) * sizes.quantised
    gathered = 2 * (sizes.layers / shape.num_hidden_layers) * (fsdp > 1)
    if program.kind not in GRADIENTS:
        return float(one + rows_out + wide + gathered)
    masks = (2 * shape.hidden_size + heads + inner) * (config.lora.training_dropout == "per_token")
    kept = tokens * (sizes.item * (4 * shape.hidden_size + 2 * heads + 2 * shared + 3 * inner) + masks)
    stream = tokens * sizes.item * shape.hidden_size
    depth = shape.num_hidden_layers
    layers = depth * stream + kept if config.training.rematerialise else depth * kept
    return float(layers + one + 2 * rows_out + wide + gathered)
