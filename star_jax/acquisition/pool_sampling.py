"""Several drawn answers to each prompt of a pool. Short ones are one jitted program a shape of batches.

Shapes: `N` pool, `K` answers of a prompt, `R` new tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from star_jax.acquisition.long_answers import is_long, long_answers
from star_jax.acquisition.pools import GeneratedPool
from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch
from star_jax.inference.batched import Logs, map_batches, map_stream, no_logs
from star_jax.inference.generation import PromptBatch, Stop, sample
from star_jax.inference.sampling import Decoding, Draws, check_decoding
from star_jax.models.dropout import row_keys
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, placed

Array = jax.Array


@dataclass(frozen=True)
class SampledAnswers:
    """Answers that were drawn for a pool, and their measures.

    Where only some examples were answered, the others' measures are NaN, or 0 where they are whole numbers, and their
    answers mean nothing.

    Attributes:
      measures: name -> `N×K`, of the model's own distribution, at temperature 1 and without a nucleus.
      responses: `N×K×R` int32, 0 behind their end.
      lengths: `N×K` int32, the token that ends an answer included.
    """

    measures: dict[str, Array]
    responses: Array
    lengths: Array


def sample_pool(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: GeneratedPool,
    *,
    key: Array,
    decoding: Decoding,
    rows: ArrayLike | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
    logs: Logs = no_logs,
) -> SampledAnswers:
    """K drawn answers to every prompt, or to some, on all local devices.

    An answer depends on the key, the number of its prompt in the pool and its own number, and but for rounding neither
    on the batch nor on the number of devices.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      pool: tokenised prompts.
      key: PRNG key.
      decoding: how many answers, and how they are drawn.
      rows: numbers of the examples that are answered, at least one; None for all.
      on_batch: told the number of examples of each batch, once the device has finished it.
      logs: gives what keeps the results as they come.

    Raises:
      ConfigError: answers cannot be drawn that way.
    """
    check_decoding(decoding)
    model, adapter = merge_adapter(placed(model), placed(adapter))
    batches, log = pool.batches(rows), logs("samples")
    if is_long(pool):
        stream = long_answers((model, adapter), pool, decoding, key)
        return SampledAnswers(*map_stream(stream, batches, 1, pool.size, on_batch, log))

    def run(batch: Batch) -> Any:
        inputs, stop = (batch.tokens, batch.lengths, batch.row_mask, batch.index), (pool.response_limit, pool.end_ids)
        return _sample((model, adapter, key), inputs, capacity=batch.capacity, stop=stop, decoding=decoding)

    return SampledAnswers(*map_batches(run, batches, 1, pool.size, on_batch, log))


@partial(jax.jit, static_argnames=("capacity", "stop", "decoding"))
def _sample(
    shared: Any, rows: Any, *, capacity: int, stop: tuple[int, tuple[int, ...]], decoding: Decoding
) -> tuple[dict[str, Array], Array, Array]:
    def answer(shared: Any, rows: Any) -> tuple[dict[str, Array], Array, Array]:
        (model, adapter, key), (prompts, lengths, row_mask, index) = shared, rows
        batch, draws = PromptBatch(prompts, lengths, row_mask), Draws(decoding, row_keys(key, index))
        written = sample(model, adapter, batch, Stop(*stop), draws, capacity=capacity)
        assert written.statistics is not None
        mask = jnp.arange(stop[0]) < written.lengths[..., None]
        found = (jax.vmap(sequence_measures)(written.statistics, mask), written.tokens, written.lengths)
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)

    return by_rows(answer, shared, rows)
