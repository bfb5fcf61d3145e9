"""What `test_mesh` runs in a process of its own with eight devices: the same work on several meshes.

    python tests/mesh_child.py FILE.npz

writes one array for each `KIND/MESH/NAME`. With ALL_MESHES=1 in the environment these are of every kind of model on
every mesh, which takes an hour; with ALL_MESHES=llama,nf4 of those kinds.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from random_models import FAMILIES, random_adapter, random_model

from star_jax.acquisition.branched_pool import branch_pool
from star_jax.acquisition.pool_scoring import _answer, score_pool
from star_jax.acquisition.pools import CandidatePool, GeneratedPool, ProposedPool
from star_jax.active.pool import PoolState
from star_jax.active.state import LoopState
from star_jax.config import LoraConfig, TrainingConfig
from star_jax.data.batching import Shape
from star_jax.data.bucketing import StepLadder
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.gradients import fisher_diagonal, gradient_sketches
from star_jax.inference.mc_dropout import Sampling
from star_jax.models import transformer
from star_jax.models.architecture import Experts, TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.quantization import quantize
from star_jax.parallel.mesh import placed, use_mesh
from star_jax.parallel.placement import names_of, split_axis
from star_jax.runs.loop_state import load_state, save_state
from star_jax.training.trainer import TrainingRows, fit, init_state

MESHES = {"8x1": 1, "1x8": 8, "4x2": 2, "2x4": 4}
"""Name -> devices that share a model."""

VOCABULARY, LONGEST = 40, 12
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
RNG = np.random.default_rng(0)


def rows(count: int) -> list[TokenizedExample]:
    """Prompts with responses."""
    found = []
    for _ in range(count):
        length = int(RNG.integers(6, LONGEST + 1))
        found.append(TokenizedExample(RNG.integers(1, VOCABULARY, length).astype(np.int32), int(RNG.integers(2, 5))))
    return found


PROPOSED, PROMPTS = rows(20), rows(11)
ONE_SHAPE = (Shape(3, LONGEST, 3 * LONGEST),)
SAMPLING = Sampling(2, 0.2, "shared")
LORA = LoraConfig(rank=2, dropout=0.2)
TRAINING = TrainingConfig(learning_rate=1e-2, epochs=1, batch_size=16, gradient_clip=0.5, l2_b=1e-3)
TRAINED = rows(40)


def closed_pool() -> CandidatePool:
    """Three candidates behind each prompt, all behind the same beginning, as rows and as trees."""
    start = np.asarray([3, 4, 5], np.int32)
    found = []
    for row in PROMPTS[:5]:
        prompt = np.concatenate([start, row.tokens[: row.prompt_length]])
        for answer in ([7], [8, 9], [10, 9]):
            found.append(TokenizedExample(np.concatenate([prompt, np.asarray(answer, np.int32)]), len(prompt)))
    return CandidatePool(found, (Shape(3, 12, 36),), 3, branch_pool(found, 3, 2))


def generated_pool() -> GeneratedPool:
    prompts = [row.tokens[: row.prompt_length] for row in PROMPTS]
    return GeneratedPool(prompts, (Shape(2, 4, 8),), 5, (1, 2, 3), ONE_SHAPE)


def models(kind: str) -> tuple[LanguageModel, Adapter]:
    """A model and an adapter of one kind of weights, or of one family."""
    rng = np.random.default_rng(5)
    extra = FAMILIES.get(kind, {}) | ({"experts": Experts(3, 2, 8)} if kind == "experts" else {})
    if kind in ("bfloat16", "nf4", "int8"):
        extra = {"dtype": "bfloat16"}
    config = TransformerConfig(**(SHAPE | {"intermediate_size": 24, **extra}))
    model, adapter = random_model(rng, config), random_adapter(rng, config, rank=2, scale=0.5)
    if kind in ("nf4", "int8"):
        for layer in model.params["layers"].values():
            for name in {"kernel", "gate_up", "down"} & set(layer):
                layer[name] = quantize(layer[name], kind)
    return model, adapter


def scores(model: LanguageModel, adapter: Adapter, modes: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Measures of every kind of pool, with and without samples."""
    pools = {"proposed": ProposedPool(PROPOSED, ONE_SHAPE), "closed": closed_pool(), "written": generated_pool()}
    for kind, pool in pools.items():
        for way in (None, SAMPLING) if kind != "written" else (None,):
            name = f"{kind} sampled" if way else kind
            if name in modes:
                found = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=way)
                yield from ((f"{name} {measure}", values) for measure, values in found.measures.items())
                if found.responses is not None:
                    yield f"{name} responses", found.responses


def vectors(model: LanguageModel, adapter: Adapter) -> Iterator[tuple[str, Any]]:
    """Embeddings, gradient sketches, and the curvature of a trained adapter."""
    prompts = [row.tokens for row in PROMPTS]
    yield "embedding", embed_prompts(model, adapter, prompts, ONE_SHAPE, [Readout(projection=3)])[0]
    yield "sketch", gradient_sketches(model, adapter, PROPOSED[:9], ONE_SHAPE, 16)
    curvature = fisher_diagonal(jax.random.key(4), model, adapter, PROPOSED[:9], ONE_SHAPE)
    yield "curvature", curvature["layers"]["o_proj"]["a"]


def training(model: LanguageModel) -> Iterator[tuple[str, Any]]:
    """An adapter after a few steps."""
    data = TrainingRows(TRAINED, [], StepLadder(ONE_SHAPE, ONE_SHAPE))
    fitted = fit(jax.random.key(3), model, data, LORA, TRAINING)
    yield "losses", fitted.step_losses
    for path, leaf in jax.tree_util.tree_leaves_with_path(fitted.adapter.weights):
        yield f"trained {jax.tree_util.keystr(path)}", leaf


def kept(adapter: Adapter) -> Iterator[tuple[str, Any]]:
    """The adapter of a run that is taken up again."""
    state = LoopState(1, PoolState(jnp.zeros(3, jnp.int32)), {}, placed(adapter), {})
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), state)
        found = load_state(Path(folder))
    assert found is not None
    assert found.adapter is not None
    for path, leaf in jax.tree_util.tree_leaves_with_path(found.adapter.weights):
        yield f"kept {jax.tree_util.keystr(path)}", leaf


def traffic(model: LanguageModel, parts: int) -> Iterator[tuple[str, Any]]:
    """How many kernels the compiled program gathers where prompts are read, and where answers are written, which is
    where results go back to whose rows they are."""
    batch = next(generated_pool().batches())
    rows = (batch.tokens, batch.lengths, batch.row_mask)
    lowered = _answer.lower(placed(model), None, rows, capacity=batch.capacity, width=5, end_ids=(1,))
    kernels = [layer["kernel"].shape[1:] for layer in model.params["layers"].values() if "kernel" in layer]
    gathered = {f"[{parts},{width},{out // parts}]" for width, out in kernels}
    counts = {True: 0, False: 0}
    for computation in lowered.compile().as_text().split("\n\n"):
        found = [re.search(r"= \w+(\[[\d,]+\])\S* all-gather", line) for line in computation.splitlines()]
        counts[" all-to-all" in computation] += sum(one is not None and one[1] in gathered for one in found)
    yield "traffic", np.asarray([counts[False], counts[True]])


def sizes(model: LanguageModel) -> Iterator[tuple[str, Any]]:
    """Bytes of parameters, adapter and moments: of what is split, of the rest, and on the first device."""
    start = partial(init_state, lora=LORA, config=TRAINING)
    tree = placed((model, start(jax.random.key(0), model)))
    leaves = [(names_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    split = sum(leaf.nbytes for names, leaf in leaves if split_axis(names, leaf.shape, 8) is not None)
    first = jax.devices()[0]
    here = sum(shard.data.nbytes for _, leaf in leaves for shard in leaf.addressable_shards if shard.device == first)
    yield "bytes", np.asarray([split, sum(leaf.nbytes for _, leaf in leaves) - split, here])


Work = dict[str, tuple[tuple[str, ...], str]]
SOME: Work = {
    "llama": (("8x1", "2x4"), "proposed sampled, closed, written, training, state"),
    "nf4": (("8x1", "4x2"), "proposed sampled, training"),
}
"""Kind of model -> meshes, and what is done on them."""

EVERYTHING = "proposed, proposed sampled, closed, closed sampled, written, training, vectors"
ALL: Work = SOME | dict.fromkeys((*FAMILIES, "bfloat16", "int8", "nf4", "experts"), (tuple(MESHES), EVERYTHING))
_ASKED = os.environ.get("ALL_MESHES", "")
WORK = {kind: ALL[kind] for kind in (ALL if _ASKED == "1" else _ASKED.split(","))} if _ASKED else SOME


def main() -> None:
    # As the layers of a large model are compiled: once for all of them.
    transformer.UNROLLED_LAYERS = 0
    found = {}
    for kind, (meshes, asked) in WORK.items():
        names = asked.split(", ")
        for mesh in meshes:
            use_mesh(MESHES[mesh])
            model, adapter = models(kind)
            work = [scores(model, adapter, names), sizes(model)]
            work += [training(model)] if "training" in names else []
            work += [vectors(model, adapter)] if "vectors" in names else []
            work += [traffic(model, MESHES[mesh])] if mesh != "8x1" and kind == "llama" else []
            work += [kept(adapter)] if "state" in names else []
            for name, value in chain(*work):
                found[f"{kind}/{mesh}/{name}"] = np.asarray(value)
    np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
