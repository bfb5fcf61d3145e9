"""Vectors for strategies: embeddings of prompts, of the pool and of targets, and sketches of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Targets
from star_jax.acquisition.pool_scoring import PoolScores, answered_rows
from star_jax.acquisition.pools import Pool
from star_jax.acquisition.settings import NO_TARGETS
from star_jax.config import LoraConfig
from star_jax.data.batching import Shape
from star_jax.data.bucketing import prompt_shapes
from star_jax.data.rows import lengths_of
from star_jax.errors import ConfigError
from star_jax.inference.batched import Logs, no_logs
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.gradients import gradient_sketches
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import data_mesh

Array = jax.Array

_FRESH_SEED = 0
"""Seed of the fresh adapter whose gradients are the base model's, where a run does not start from one."""


class Watch(NamedTuple):
    """Who is told of each batch, and what keeps the results of a pass as they come.

    Attributes:
      tick: told the number of examples of each batch.
      logs: gives what keeps them.
    """

    tick: Callable[[int], None]
    logs: Logs = no_logs

    def of(self, part: str) -> Watch:
        """The same for a part whose passes are called after it."""
        return Watch(self.tick, lambda name: self.logs(f"{part}-{name}"))


class PoolRows(NamedTuple):
    """What vectors are made from.

    Attributes:
      prompts: tokens of each.
      shapes: of batches of prompts.
      pool: prompts with the kind of answer that is scored.
      answered: what the model answered; None where no gradient is asked for.
      targets: tokens of each target prompt, where there are some.
    """

    prompts: Sequence[np.ndarray]
    shapes: Sequence[Shape]
    pool: Pool
    answered: PoolScores | None
    targets: Sequence[np.ndarray] = ()


def pool_vectors(
    model: LanguageModel,
    adapter: Adapter | None,
    needs: Sequence[Feature],
    rows: PoolRows,
    lora: LoraConfig,
    watch: Watch,
) -> dict[Feature, Array]:
    """The embeddings, of pool and targets, and gradient sketches among the needs, all of one model.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      needs: features; measures among them are left to others.
      rows: prompts, and the model's answers.
      lora: settings of the fresh adapter whose gradients are the base model's, which has none of its own.
      watch: told of batches, and keeps what they give.

    Raises:
      ConfigError: embeddings of targets are needed, and there are none.
    """
    arrays: dict[Feature, Array] = {}
    # 1. Embeddings, one pass for all.
    embeddings = [need for need in needs if isinstance(need, Embedding)]
    if embeddings:
        readouts = [Readout(need.pooling, need.projection) for need in embeddings]
        log = watch.logs("-".join(["embedded", *(f"{pooling}{width or ''}" for pooling, width in readouts)]))
        found = embed_prompts(model, adapter, rows.prompts, rows.shapes, readouts, watch.tick, log)
        arrays |= dict(zip(embeddings, found, strict=True))
    # 2. The same of the target prompts.
    targets = [need for need in needs if isinstance(need, Targets)]
    if targets:
        if not len(rows.targets):
            raise ConfigError(f"embeddings of target prompts were asked for, and there are none; {NO_TARGETS}")
        readouts = [Readout(need.embedding.pooling, need.embedding.projection) for need in targets]
        shapes = prompt_shapes(lengths_of(rows.targets), rows.shapes[0].rows, 1, data_mesh().size)
        found = embed_prompts(model, adapter, rows.targets, shapes, readouts)
        arrays |= dict(zip(targets, found, strict=True))
    # 3. Gradients of the answers.
    for need in needs:
        if isinstance(need, GradientSketch):
            assert rows.answered is not None
            trained = init_adapter(jax.random.key(_FRESH_SEED), model.params, lora) if adapter is None else adapter
            sequences, shapes = answered_rows(rows.pool, rows.answered), rows.pool.answered_shapes
            log = watch.logs(f"sketched{need.width}")
            arrays[need] = gradient_sketches(model, trained, sequences, shapes, need.width, watch.tick, log)
    return arrays
