"""Scores of a closed answer set from one row a prompt: it is read once, and what all prompts begin with once a pass.

Whether that costs less than a row for every candidate is estimated from lengths and the model's shape.

Shapes: `N` pool, `B` batch, `C` candidates, `K` MC samples, `P` tokens that all prompts begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch, Shape, sequence_batches
from star_jax.data.branches import (
    BranchedRow,
    Widths,
    branched_rows,
    rows_as_examples,
    shared_beginning,
    tree_arrays,
    tree_widths,
    without_beginning,
)
from star_jax.data.bucketing import budget_shapes
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.batched import map_batches
from star_jax.inference.candidates import Noise, TreeInputs, candidate_log_probs, read_beginning
from star_jax.inference.mc_dropout import Sampling, sample_keys
from star_jax.inference.scoring import choice_statistics
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.attention_branches import SharedKeys
from star_jax.parallel.mesh import by_rows, data_mesh

Array = jax.Array

BRANCHED_SHAPES = 2
"""Shapes of batches of rows that branch: each is a program more to compile, and leaves less padding."""


class Form(NamedTuple):
    """Rows that branch, ready for batches.

    Attributes:
      rows: `N`.
      shapes: of batches.
      widths: that hold the trees of all rows.
    """

    rows: Sequence[BranchedRow]
    shapes: tuple[Shape, ...]
    widths: Widths


@dataclass(frozen=True)
class BranchedCandidates:
    """A pool of prompts with a closed set of answers, one row a prompt.

    Attributes:
      whole: rows with the whole prompt.
      beginning: `P` tokens that all prompts begin with.
      behind: rows without them; None where P is 0.
    """

    whole: Form
    beginning: np.ndarray
    behind: Form | None


def branch_candidates(rows: Sequence[TokenizedExample], candidates: int, batch_size: int) -> BranchedCandidates | None:
    """One row for every C neighbours; None where the texts of some prompt have no token in common.

    Args:
      rows: C for each prompt, side by side: it, with one of the candidates behind it.
      candidates: C.
      batch_size: prompts of a batch on each device; more where a row has fewer tokens than a prompt with one answer,
        so that as many tokens are computed at once as with one answer each.
    """
    whole = branched_rows(rows, candidates)
    if not whole:
        return None
    tokens = batch_size * float(np.mean([len(row.tokens) for row in rows]))
    beginning = shared_beginning(whole)
    behind = [without_beginning(row, len(beginning)) for row in whole] if len(beginning) else None
    return BranchedCandidates(
        _form(whole, batch_size, tokens), beginning, None if behind is None else _form(behind, batch_size, tokens)
    )


def _form(rows: Sequence[BranchedRow], batch_size: int, tokens: float) -> Form:
    lengths = [len(row.tokens) for row in rows]
    count = max(batch_size, round(tokens / float(np.mean(lengths))))
    shapes = budget_shapes(lengths, count, BRANCHED_SHAPES, max(lengths), data_mesh().size)
    return Form(rows, shapes, tree_widths(rows))


def score_branched(
    judge: tuple[LanguageModel, Adapter | None],
    pool: BranchedCandidates,
    key: Array,
    sampling: Sampling | None,
    on_batch: Callable[[int], None],
) -> tuple[dict[str, Array], Array]:
    """Every measure `N` of the distribution over the candidates, and the number `N` of the most probable one.

    Args:
      judge: model and adapter.
      pool: prompts with their candidates.
      key: PRNG key of the dropout masks.
      sampling: Monte-Carlo dropout; None for one deterministic pass.
      on_batch: told the number of examples of each batch.
    """
    # Masks of an example's own change what is before it too, also where all examples have the same tokens.
    alike = sampling is None or sampling.mode == "shared"
    form, beginning = pool.whole, None
    if pool.behind is not None and alike:
        form = pool.behind
        beginning = _read(*judge, key, pool.beginning, sampling=sampling)

    def run(batch: Batch) -> Any:
        trees = tree_arrays(form.rows, batch, form.widths)
        rows = TreeInputs(batch.tokens, batch.lengths, trees), batch.index
        return _score((*judge, key, beginning), rows, capacity=batch.capacity, sampling=sampling)

    batches = tuple(sequence_batches(rows_as_examples(form.rows), form.shapes, data_mesh().size))
    measures, choice = map_batches(run, batches, 1, len(form.rows), on_batch)
    return measures, choice


@partial(jax.jit, static_argnames="sampling")
def _read(
    model: LanguageModel, adapter: Adapter | None, key: Array, tokens: Array, *, sampling: Sampling | None
) -> SharedKeys:
    return read_beginning(model, adapter, tokens, _noise(adapter, key, tokens, sampling))


@partial(jax.jit, static_argnames=("capacity", "sampling"))
def _score(shared: Any, rows: Any, *, capacity: int, sampling: Sampling | None) -> tuple[dict[str, Array], Array]:
    def score(shared: Any, rows: Any) -> tuple[dict[str, Array], Array]:
        (model, adapter, key, beginning), (inputs, index) = shared, rows
        noise = _noise(adapter, key, index, sampling)
        log_probs = candidate_log_probs(model, adapter, inputs, capacity, shared=beginning, noise=noise)
        over_candidates, mask, choice = choice_statistics(log_probs)
        return sequence_measures(over_candidates, mask), choice

    return by_rows(score, shared, rows)


def _noise(adapter: Adapter | None, key: Array, index: Array, sampling: Sampling | None) -> Noise | None:
    return None if sampling is None or adapter is None else Noise(sample_keys(key, index, sampling), sampling)
