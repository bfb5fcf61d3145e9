"""star_jax's side: every call of the package that is timed, and nothing of torch."""

from __future__ import annotations

import time
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workload import LORA_SPREAD, SEED, WEIGHT_SPREAD, Outcome, Workload, prompts_of

from star_jax.acquisition.pool_scoring import Sampling, score_pool
from star_jax.acquisition.pools import BatchSizes, GeneratedPool, ProposedPool, choose_shapes, proposed_pool
from star_jax.acquisition.strategy import Query, get_strategy, pick
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import load_adapter
from star_jax.config import LoraConfig, TrainingConfig
from star_jax.data.tokenization import TokenizedExample
from star_jax.environment import configure_jax
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.parallel.mesh import replicated
from star_jax.training.trainer import TrainingRows, fit, training_shapes

Array = jax.Array

PACKAGES = ("jax", "jaxlib", "flax", "optax")

NEVER = (-1,)
"""An end that no token is, so that every answer has its full length."""

configure_jax()


def accelerator() -> str | None:
    """Name of the GPU that JAX computes on, or None."""
    device = jax.devices()[0]
    return device.device_kind if device.platform == "gpu" else None


def most_bytes() -> int | None:
    """The most memory that arrays and programs of this process have taken on the GPU; None on a CPU."""
    stats = jax.devices()[0].memory_stats() if accelerator() else None
    return stats.get("peak_bytes_in_use") if stats else None


class Bench:
    """The tasks in one dtype, with their model and batches."""

    def __init__(self, workload: Workload, dtype: str) -> None:
        self.workload, self.dtype = workload, dtype
        self.lora = LoraConfig(
            rank=workload.rank,
            alpha=workload.alpha,
            dropout=workload.dropout,
            training_dropout=workload.training_dropout,
        )
        self.training = TrainingConfig(
            learning_rate=workload.learning_rate,
            epochs=1,
            batch_size=workload.train_batch,
            gradient_clip=workload.gradient_clip,
            decay_b=workload.decay_b,
        )
        self.model, self.adapter = (
            _in_memory(workload, dtype, self.lora) if workload.folder is None else _read(workload, dtype)
        )
        sequences = workload.sequences()
        rows = [TokenizedExample(one.tokens, one.prompt_length) for one in sequences]
        self.rows, self.pool_rows = rows[: workload.examples], rows[: workload.pool]
        prompts, test = prompts_of(sequences[: workload.prompts]), workload.test_prompts()
        lengths = [len(row.tokens) for row in rows]
        # A device's rows: together the devices have as many as the peer has in a batch.
        sizes = BatchSizes(
            *(-(-rows // jax.local_device_count()) for rows in (workload.generate_batch, workload.score_batch))
        )
        self.shapes = choose_shapes([*map(len, prompts), *map(len, test)], lengths, max(lengths), sizes)
        self.steps = training_shapes(lengths, [], max(lengths), self.training)
        self.proposed, self.pool = self._proposed(self.rows), self._proposed(self.pool_rows)
        self.prompts, self.test = self._pool(prompts), self._pool(test)
        self.sampling = Sampling(workload.samples, workload.dropout, workload.scoring_dropout)

    def choose(self, task: str) -> dict[str, float]:
        """There is one way to do a task."""
        return {}

    def run(self, task: str) -> Outcome:
        """One timed run of a task."""
        tasks = {
            "score-k1": self._score_once,
            "score-k3": self._score_samples,
            "train": self._train,
            "generate": self._generate,
            "round": self._round,
        }
        began = time.perf_counter()
        check = tasks[task]()
        seconds = time.perf_counter() - began
        # What `models.merged` and `models.lora` do in float32: a mask that all rows share is part of the adapter.
        merged = self.dtype == "float32"
        shared = merged and self.sampling.mode == "shared"
        return Outcome(seconds, merged=merged, variant="", check=check, merged_samples=shared)

    def multiply(self, times: int) -> None:
        """Takes the product of two square matrices so many times, in float32 or with float32 accumulation."""
        jax.block_until_ready([_product(*self._factors) for _ in range(times)])

    @cached_property
    def _factors(self) -> tuple[Array, Array]:
        square = (self.workload.peak_size, self.workload.peak_size)
        left, right = jax.random.split(jax.random.key(SEED))
        return jax.random.normal(left, square, self.dtype), jax.random.normal(right, square, self.dtype)

    def _score_once(self) -> dict[str, list[float]]:
        return _measures(score_pool(self.model, self.adapter, self.proposed).measures)

    def _score_samples(self) -> dict[str, list[float]]:
        scores = score_pool(self.model, self.adapter, self.proposed, key=jax.random.key(1), sampling=self.sampling)
        return _measures(scores.measures)

    def _train(self) -> dict[str, list[float]]:
        return {"loss": [self._fit(self.rows)[1]]}

    def _generate(self) -> dict[str, list[float]]:
        return {"tokens": self._answers(self.prompts, self.adapter).ravel().tolist()}

    def _round(self) -> dict[str, list[float]]:
        """Base scores, full scores, picks, training, answers on the test prompts."""
        base = score_pool(self.model, None, self.pool).measures["token_entropy"]
        full = score_pool(self.model, self.adapter, self.pool, key=jax.random.key(1), sampling=self.sampling)
        picked = np.asarray(_pick(base, full.measures["token_entropy"], count=self.workload.picks)).tolist()
        adapter, _ = self._fit([self.pool_rows[i] for i in picked])
        self._answers(self.test, adapter)
        return {"picked": picked}

    def _fit(self, rows: list[TokenizedExample]) -> tuple[Adapter, float]:
        data = TrainingRows(rows, [], self.steps)
        fitted = fit(jax.random.key(2), self.model, data, self.lora, self.training)
        return jax.block_until_ready(fitted.adapter), fitted.loss

    def _answers(self, pool: GeneratedPool, adapter: Adapter) -> np.ndarray:
        """Greedy answers `N×new_tokens`, in the order of the prompts, with what the model says about each token."""
        return np.asarray(score_pool(self.model, adapter, pool).responses)

    def _proposed(self, rows: list[TokenizedExample]) -> ProposedPool:
        return proposed_pool(rows, self.shapes.sequences)

    def _pool(self, prompts: list[np.ndarray]) -> GeneratedPool:
        ends = self.workload.ends or NEVER
        return GeneratedPool(prompts, self.shapes.prompts, self.workload.new_tokens, ends, ())


def _read(workload: Workload, dtype: str) -> tuple[LanguageModel, Adapter]:
    assert workload.folder is not None
    model = replicated(load_model(str(Path(workload.folder) / "model"), dtype))
    return model, load_adapter(Path(workload.folder) / "adapter", model.config)[0]


def _in_memory(workload: Workload, dtype: str, lora: LoraConfig) -> tuple[LanguageModel, Adapter]:
    """Random weights made on the device: the tree of a loaded model, without a file."""
    shape = workload.shape
    decoder = Decoder(
        TransformerConfig(
            vocab_size=shape.vocab,
            hidden_size=shape.width,
            intermediate_size=shape.mlp,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rms_norm_eps=shape.config()["rms_norm_eps"],
            dtype=dtype,
        )
    )
    one = jnp.zeros((1, 1), jnp.int32)
    tree = jax.eval_shape(decoder.init, jax.random.key(0), one)["params"]
    leaves, structure = jax.tree.flatten_with_path(tree)
    keys = jax.random.split(jax.random.key(SEED), len(leaves))
    params = jax.tree.unflatten(
        structure,
        [
            _drawn(key, name=path[-1].key, shape=leaf.shape, dtype=leaf.dtype)
            for key, (path, leaf) in zip(keys, leaves, strict=True)
        ],
    )
    fresh = init_adapter(jax.random.key(SEED + 1), params, lora)
    factors = {
        name: {"a": pair["a"], "b": LORA_SPREAD * jax.random.normal(key, pair["b"].shape)}
        for key, (name, pair) in zip(
            jax.random.split(jax.random.key(SEED + 2), len(shape.projections)),
            fresh.weights["layers"].items(),
            strict=True,
        )
    }
    return replicated(LanguageModel(decoder, params)), Adapter({"layers": factors}, fresh.scale)


@partial(jax.jit, static_argnames=("name", "shape", "dtype"))
def _drawn(key: Array, *, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    if name == "scale":
        return jnp.ones(shape, dtype)
    if len(shape) == 2:
        return (WEIGHT_SPREAD * jax.random.normal(key, shape)).astype(dtype)
    # Layer by layer: the random bits of a whole stack would be the largest array of all.
    return jax.lax.map(partial(_drawn, name=name, shape=shape[1:], dtype=dtype), jax.random.split(key, shape[0]))


def _measures(measures: dict[str, Array]) -> dict[str, list[float]]:
    host = jax.device_get(measures)  # all of them, as a run that compares strategies would
    return {"nll": host["sequence_nll"].tolist(), "entropy": host["token_entropy"].tolist()}


@partial(jax.jit, static_argnames=("count",))
def _pick(base: Array, full: Array, *, count: int) -> Array:
    """STAR's blend in the midst of a run of ten queries, and its top k."""
    everything = jnp.ones(base.shape, bool)
    key = jax.random.key(3)
    return pick(get_strategy("star"), key, (base, full), everything, Query(4, 10, count))[0]


@jax.jit
def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)
