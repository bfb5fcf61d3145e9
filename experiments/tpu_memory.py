"""Memory of the package's programs on TPU chips, as XLA's compiler for TPUs counts it. No TPU is needed.

    pip install libtpu
    python experiments/tpu_memory.py

compiles scoring, generating and training of a 7 billion Llama for v5e chips, from shapes alone, and prints for each
what a chip has to hold: arguments, temporaries and outputs, less the outputs that take the place of arguments. The
programs are those a run compiles; only the mesh and the choice of attention kernel are pointed at chips that are not
there. A program takes one to three minutes of one core. Rows are those of one chip: four chips take four times as many.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

# Read when libtpu is loaded: it must neither look for a machine with chips nor insist on having one to itself.
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.acquisition import pool_scoring
from star_jax.config import LoraConfig, ScoringConfig, TrainingConfig
from star_jax.models import lm_head, transformer
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops import attention
from star_jax.ops.quantization import quantize
from star_jax.parallel import mesh as devices
from star_jax.training.trainer import Fixed, TrainBatch, init_state, train_step

LLAMA_7B = TransformerConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    dtype="bfloat16",
)
TOPOLOGY = "v5e:2x2"
CHIP_COUNTS = (1, 4)
WEIGHTS = {"bfloat16": "none", "nf4": "nf4"}
GIGA = 1e9

Tree = Any


def use_chips(count: int) -> Mesh:
    """Points the package at the first chips of the topology, as if they were this machine's."""
    chips = get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices[:count]
    mesh = Mesh(np.asarray(chips).reshape(-1, 1), devices.ROWS)
    devices.data_mesh = lambda: mesh
    attention.choose_implementation = transformer.choose_implementation = partial(
        attention.choose_implementation, device=chips[0]
    )
    lm_head.LOGITS_AT_ONCE = {}
    return mesh


def placed(mesh: Mesh, tree: Tree, *axes: str) -> Tree:
    """Shapes of the tree's arrays, which lie on all chips, each whole or split along `axes`."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shaped_model(mesh: Mesh, kind: Any, rematerialise: bool = False) -> LanguageModel:
    """The model, its projections quantised where `kind` says so."""
    decoder = Decoder(LLAMA_7B, rematerialise=rematerialise)
    params = jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    for layer in params["layers"].values():
        if "kernel" in layer:
            layer["kernel"] = jax.eval_shape(partial(quantize, kind=kind), layer["kernel"])
    return LanguageModel(decoder, placed(mesh, params))


def shaped_adapter(mesh: Mesh, model: LanguageModel) -> Adapter:
    """A fresh adapter, as configured by default."""
    return placed(mesh, jax.eval_shape(partial(init_adapter, config=LoraConfig()), jax.random.key(0), model.params))


def shaped_rows(mesh: Mesh, rows: int, width: int) -> tuple[SequenceInputs, Any, Any]:
    """Inputs, a mask of real rows, and their numbers; `rows` on each chip."""
    count = rows * mesh.size
    numbers = jnp.zeros(count, jnp.int32)
    inputs = SequenceInputs(jnp.zeros((count, width), jnp.int32), numbers, numbers)
    return placed(mesh, (inputs, jnp.zeros(count, bool), numbers), devices.ROWS)


def scoring(mesh: Mesh, kind: Any, rows: int, width: int) -> Any:
    """Monte-Carlo dropout passes over prompts with their responses."""
    model = shaped_model(mesh, kind)
    inputs, _, index = shaped_rows(mesh, rows, width)
    config = ScoringConfig()
    sampling = pool_scoring.Sampling(config.mc_samples, LoraConfig().dropout, config.dropout)
    shared = (model, shaped_adapter(mesh, model), placed(mesh, jax.random.key(0)))
    return pool_scoring._score_proposed.lower(shared, (inputs, index), capacity=rows * width, sampling=sampling)


def generating(mesh: Mesh, kind: Any, rows: int, width: int, tokens: int) -> Any:
    """Answers of `tokens` tokens at most to prompts of `width`."""
    model = shaped_model(mesh, kind)
    inputs, row_mask, _ = shaped_rows(mesh, rows, width)
    prompts = (inputs.tokens, inputs.lengths, row_mask)
    adapter = shaped_adapter(mesh, model)
    return pool_scoring._answer.lower(model, adapter, prompts, capacity=rows * width, width=tokens, end_ids=(2,))


def training(mesh: Mesh, kind: Any, rows: int, width: int, rematerialise: bool) -> Any:
    """One step of training the adapter."""
    lora, config = LoraConfig(), TrainingConfig(rematerialise=rematerialise)
    model = shaped_model(mesh, kind, rematerialise)
    start = partial(init_state, lora=lora, config=config)
    state, scale = placed(mesh, jax.eval_shape(start, jax.random.key(0), model))
    key, total = placed(mesh, (jax.random.key(0), jnp.zeros((), jnp.int32)))
    batch = TrainBatch(*shaped_rows(mesh, rows, width))
    fixed = Fixed(model, scale, key, total)
    return train_step.lower(fixed, state, batch, capacity=rows * width, lora=lora, config=config)


def memory(lowered: Any) -> str:
    """What a chip has to hold, or what the compiler said where that is more than it has."""
    start = time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return f"does not fit: {str(error).splitlines()[0]}"
    held = compiled.memory_analysis()
    total = held.argument_size_in_bytes + held.temp_size_in_bytes + held.output_size_in_bytes - held.alias_size_in_bytes
    parts = f"arguments {held.argument_size_in_bytes / GIGA:.2f}, temporaries {held.temp_size_in_bytes / GIGA:.2f}"
    return f"{total / GIGA:.1f} GB a chip ({parts}); {time.process_time() - start:.0f} s of a core to compile"


def programs(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[Mesh, Any], Any]]]:
    """Name -> what lowers the program for a mesh and a kind of weights."""
    yield (
        f"score {args.score_rows} rows of {args.width}",
        partial(scoring, rows=args.score_rows, width=args.width),
    )
    yield (
        f"generate {args.new_tokens} for {args.prompts} prompts of {args.prompt_width}",
        partial(generating, rows=args.prompts, width=args.prompt_width, tokens=args.new_tokens),
    )
    for again in (False, True):
        yield (
            f"train on {args.train_rows} rows of {args.width}" + again * ", rematerialised",
            partial(training, rows=args.train_rows, width=args.width, rematerialise=again),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="programs whose name begins so")
    parser.add_argument("--weights", choices=WEIGHTS, nargs="+", default=[*WEIGHTS])
    parser.add_argument("--chips", type=int, choices=CHIP_COUNTS, default=1)
    parser.add_argument("--width", type=int, default=384, help="tokens of a row that is scored or trained on")
    parser.add_argument("--score-rows", type=int, default=ScoringConfig().batch_size)
    parser.add_argument("--train-rows", type=int, default=TrainingConfig().batch_size)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-width", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    args = parser.parse_args()
    mesh = use_chips(args.chips)
    for (name, lower), weights in product(programs(args), args.weights):
        if name.startswith(args.only):
            print(f"{name}, {weights}, {args.chips} chip(s): {memory(lower(mesh, WEIGHTS[weights]))}", flush=True)


if __name__ == "__main__":
    main()
