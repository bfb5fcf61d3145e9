"""Measures of a closed answer set from one row a prompt: a jitted program for each shape of rows that branch.

Shapes: `N` pool, `P` tokens that all prompts begin with, `K` MC samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from star_jax.acquisition.branched_pool import BranchedPool, Form
from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch
from star_jax.data.branches import tree_arrays
from star_jax.inference.batched import BatchLog, map_batches
from star_jax.inference.candidates import Noise, TreeInputs, candidate_log_probs, read_beginning
from star_jax.inference.mc_dropout import Samples, sample_keys
from star_jax.inference.scoring import choice_statistics
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.attention_branches import SharedKeys
from star_jax.parallel.mesh import ALIKE, by_rows

Array = jax.Array


class BranchedPass(NamedTuple):
    """How a pool is gone through.

    Attributes:
      form: rows that branch.
      beginning: `P` tokens that all of them go on behind; None where they are whole.
      key: PRNG key of the dropout masks.
      sampling: what differs between samples; None for one deterministic pass.
      detailed: whether the probabilities of all candidates are given too.
    """

    form: Form
    beginning: np.ndarray | None
    key: Array
    sampling: Samples | None
    detailed: bool = False


def choose_pass(
    model: LanguageModel, pool: BranchedPool | None, key: Array, sampling: Samples | None
) -> BranchedPass | None:
    """The way with the least work; None where that is a row for each candidate."""
    # Masks of an example's own change what is before it too, also where all examples begin with the same tokens.
    alike = sampling is None or sampling.alike
    form = None if pool is None else pool.form(model.config, alike=alike)
    if pool is None or form is None:
        return None
    return BranchedPass(form, pool.beginning if form is pool.behind else None, key, sampling)


def score_branched(
    model: LanguageModel,
    adapter: Adapter | None,
    way: BranchedPass,
    chosen: ArrayLike | None,
    on_batch: Callable[[int], None],
    log: BatchLog | None = None,
) -> tuple[Any, ...]:
    """Every measure `N` of the distribution over the candidates, the number `N` of the most probable one, and the
    probabilities `N×K×C` where the pass is detailed.

    Args:
      model: decoder and frozen weights, on every device.
      adapter: likewise, or None.
      way: from `choose_pass`.
      chosen: numbers of the examples that are scored; None for all.
      on_batch: told the number of examples of each batch.
      log: keeps the results of batches as they come.
    """
    form, sampling = way.form, way.sampling
    beginning = None
    if way.beginning is not None:
        beginning = _read_shared(model, adapter, way.key, way.beginning, sampling=sampling)

    def run(batch: Batch) -> Any:
        trees = tree_arrays(form.rows, batch, form.widths)
        rows = TreeInputs(batch.tokens, batch.lengths, trees), batch.index
        shared, kind = (model, adapter, way.key, beginning), {"sampling": sampling, "detailed": way.detailed}
        return _score_branched(shared, rows, capacity=batch.capacity, **kind)

    found: tuple[Any, ...] = map_batches(run, form.batches(chosen), 1, len(form.rows), on_batch, log)
    return found


@partial(jax.jit, static_argnames="sampling")
def _read_shared(
    model: LanguageModel, adapter: Adapter | None, key: Array, tokens: Array, *, sampling: Samples | None
) -> SharedKeys:
    def read(shared: Any, rows: Any) -> SharedKeys:
        model, adapter, key, tokens = shared
        return read_beginning(model, adapter, tokens, _noise(adapter, key, tokens, sampling))

    return by_rows(read, (model, adapter, key, tokens), (), out=ALIKE)


def measures_of_choice(log_prob: Array, detailed: bool) -> tuple[Any, ...]:
    """Measures `B` by name, the most probable candidate `B`, and where `detailed` the probabilities `B×K×C`, of
    log-probabilities `K×B×C`."""
    over_candidates, mask, choice = choice_statistics(log_prob)
    found = (sequence_measures(over_candidates, mask), choice)
    return (*found, jnp.moveaxis(jax.nn.softmax(log_prob), 0, 1)) if detailed else found


@partial(jax.jit, static_argnames=("capacity", "sampling", "detailed"))
def _score_branched(
    shared: Any, rows: Any, *, capacity: int, sampling: Samples | None, detailed: bool = False
) -> tuple[Any, ...]:
    def score(shared: Any, rows: Any) -> tuple[Any, ...]:
        (model, adapter, key, beginning), (inputs, index) = shared, rows
        noise = _noise(adapter, key, index, sampling)
        log_probs = candidate_log_probs(model, adapter, inputs, capacity, shared=beginning, noise=noise)
        return measures_of_choice(log_probs, detailed)

    return by_rows(score, shared, rows)


def _noise(adapter: Adapter | None, key: Array, index: Array, sampling: Samples | None) -> Noise | None:
    return None if sampling is None or adapter is None else Noise(sample_keys(key, index, sampling), sampling)
