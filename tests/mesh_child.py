"""What `test_mesh` runs in a process of its own with eight devices: the same work on several meshes.

    python tests/mesh_child.py FILE.npz

writes one array for each `MESH/KIND/NAME`.
"""

import sys
from collections.abc import Iterator
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
from star_jax.inference.gradients import gradient_sketches
from star_jax.inference.mc_dropout import Sampling
from star_jax.models.architecture import Experts, TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.quantization import quantize
from star_jax.parallel.mesh import use_mesh
from star_jax.training.trainer import TrainingRows, fit

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


def results(kind: str, what: str) -> Iterator[tuple[str, Any]]:
    model, adapter = models(kind)
    key = jax.random.key(3)
    if "p" in what:
        yield from score_pool(model, adapter, ProposedPool(PROPOSED, ONE_SHAPE)).measures.items()
    if "m" in what:
        found = score_pool(model, adapter, ProposedPool(PROPOSED, ONE_SHAPE), key=key, sampling=SAMPLING)
        yield from ((f"sampled {name}", values) for name, values in found.measures.items())
    if "c" in what:
        for name, way in {"closed": None, "closed sampled": SAMPLING}.items():
            found = score_pool(model, adapter, closed_pool(), key=key, sampling=way)
            yield from ((f"{name} {measure}", values) for measure, values in found.measures.items())
    if "g" in what:
        found = score_pool(model, adapter, generated_pool())
        yield from ((f"written {name}", values) for name, values in found.measures.items())
        yield "written responses", found.responses
    if "e" in what:
        prompts = [row.tokens for row in PROMPTS]
        yield "embedding", embed_prompts(model, adapter, prompts, ONE_SHAPE, [Readout(projection=3)])[0]
    if "s" in what:
        yield "sketch", gradient_sketches(model, adapter, PROPOSED[:9], ONE_SHAPE, 16)
    if "t" in what:
        data = TrainingRows(TRAINED, [], StepLadder(ONE_SHAPE, ONE_SHAPE))
        fitted = fit(key, model, data, LORA, TRAINING)
        yield "losses", fitted.step_losses
        for path, leaf in jax.tree_util.tree_leaves_with_path(fitted.adapter.weights):
            yield "trained " + jax.tree_util.keystr(path), leaf


if __name__ == "__main__":
    import time

    for kind in sys.argv[2].split(","):
        first = {}
        for mesh, fsdp in MESHES.items():
            use_mesh(fsdp)
            t = time.time()
            for name, value in results(kind, sys.argv[3]):
                value = np.asarray(value)
                if mesh == "8x1":
                    first[name] = value
                elif not np.array_equal(first[name], value, equal_nan=True):
                    print("DIFFERS", kind, mesh, name, np.abs(first[name].astype(np.float64) - value).max())
            print(kind, mesh, time.time() - t, flush=True)
