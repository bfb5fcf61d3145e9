"""What `test_mesh` runs in a process of its own with eight devices: the same work on several meshes.

    python tests/mesh_child.py FILE.npz

writes one array for each `MESH/KIND/NAME`.
"""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import jax
import numpy as np
from random_models import FAMILIES, random_adapter, random_model

from star_jax.acquisition.branched_pool import branch_pool
from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import CandidatePool, GeneratedPool, ProposedPool
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


def scores(model: LanguageModel, adapter: Adapter, modes: str) -> Iterator[tuple[str, Any]]:
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
    yield "curvature", curvature["layers"]["down_proj"]["a"]


def training(model: LanguageModel) -> Iterator[tuple[str, Any]]:
    """An adapter after a few steps."""
    data = TrainingRows(TRAINED, [], StepLadder(ONE_SHAPE, ONE_SHAPE))
    fitted = fit(jax.random.key(3), model, data, LORA, TRAINING)
    yield "losses", fitted.step_losses
    for path, leaf in jax.tree_util.tree_leaves_with_path(fitted.adapter.weights):
        yield f"trained {jax.tree_util.keystr(path)}", leaf


def sizes(model: LanguageModel) -> Iterator[tuple[str, Any]]:
    """Bytes of parameters, adapter and moments: of what is split, of the rest, and on the first device."""
    start = partial(init_state, lora=LORA, config=TRAINING)
    tree = placed((model, start(jax.random.key(0), model)))
    leaves = [(names_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    split = sum(leaf.nbytes for names, leaf in leaves if split_axis(names, leaf.shape, 8) is not None)
    first = jax.devices()[0]
    here = sum(shard.data.nbytes for _, leaf in leaves for shard in leaf.addressable_shards if shard.device == first)
    yield "bytes", np.asarray([split, sum(leaf.nbytes for _, leaf in leaves) - split, here])


WORK: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "llama": (tuple(MESHES), "proposed, proposed sampled, closed, closed sampled, written", True),
    "bfloat16": (("8x1", "2x4"), "proposed sampled, written", True),
    "nf4": (("8x1", "4x2"), "proposed sampled", True),
    "int8": (("8x1", "1x8"), "written", False),
    "experts": (("8x1", "2x4"), "proposed, written", False),
    "olmo": (("8x1", "2x4"), "written", False),
    "phi": (("8x1", "1x8"), "written", False),
}
"""Kind of model -> the meshes, which pools are scored, and whether there is a training."""


def main() -> None:
    # As the layers of a large model are compiled: once for all of them.
    transformer.UNROLLED_LAYERS = 0
    found = {}
    for kind, (meshes, modes, trained) in WORK.items():
        for mesh in meshes:
            use_mesh(MESHES[mesh])
            model, adapter = models(kind)
            work = [scores(model, adapter, modes), sizes(model)]
            work += [training(model)] if trained else []
            work += [vectors(model, adapter)] if kind == "llama" and mesh in ("8x1", "2x4") else []
            for name, value in chain(*work):
                found[f"{kind}/{mesh}/{name}"] = np.asarray(value)
    np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
