"""Answers of many tokens to the prompts of a pool, batched continuously, with what the model that wrote them says.

Shapes: `B` rows of a batch, `K` answers of a prompt, `R` new tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.acquisition.pools import GeneratedPool
from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch
from star_jax.inference.batched import Stream
from star_jax.inference.continuous import Plan, write_responses
from star_jax.inference.generation import Generated
from star_jax.inference.sampling import Decoding
from star_jax.inference.slots import Model, Writing

Array = jax.Array

LONG_ANSWER = 64
"""Answers are batched continuously where they may have so many tokens; shorter ones are one program a batch."""


def is_long(pool: GeneratedPool) -> bool:
    """Whether the answers to a pool's prompts may be long."""
    return pool.response_limit >= LONG_ANSWER


def long_answers(
    model: Model, pool: GeneratedPool, decoding: Decoding | None = None, key: Array | None = None
) -> Stream:
    """Gives batches of a pool with measures `B×K`, tokens `B×K×R` and lengths `B×K` of their answers; greedy, K = 1.

    Args:
      model: decoder and adapter, on all devices.
      pool: whose prompts are answered.
      decoding: how answers are drawn; None for greedy ones.
      key: PRNG key of what is drawn.
    """
    return partial(_answers, model, Plan(Writing(pool.response_limit, pool.end_ids, decoding), key))


def _answers(model: Model, plan: Plan, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    for batch, written in write_responses(model, batches, plan):
        yield batch, _measured(written)


@jax.jit
def _measured(written: Generated) -> tuple[dict[str, Array], Array, Array]:
    assert written.statistics is not None
    mask = jnp.arange(written.tokens.shape[-1]) < written.lengths[..., None]
    found = (jax.vmap(sequence_measures)(written.statistics, mask), written.tokens, written.lengths)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
