"""A pool with a closed answer set as one row a prompt, and what it costs to read beside a row for every candidate.

Shapes: `N` pool, `C` candidates, `P` tokens that all prompts begin with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from star_jax.data.batching import Batch, Shape, sequence_batches
from star_jax.data.branches import (
    BranchedRow,
    Widths,
    branched_rows,
    rows_as_examples,
    shared_beginning,
    tree_widths,
    without_beginning,
)
from star_jax.data.bucketing import budget_shapes
from star_jax.data.rows import row_lengths
from star_jax.data.tokenization import TokenizedExample
from star_jax.models.architecture import TransformerConfig
from star_jax.parallel.mesh import data_mesh

BRANCHED_SHAPES = 2
"""Shapes of batches of rows that branch: each is a program more to compile, and leaves less padding."""

PAIR_COST = 2.0
"""Time of an operation of attention beside one of a product with weights, rounded up: 1.6 is the median, 0.5 to 6.7 the
range, of rows of 48 to 384 places and beginnings of 8 to 256 tokens, on two CPU cores that were not idle (2026-11-28,
jax 0.10.2), from `python experiments/benchmarks/attended_pairs.py`."""


class Reading(NamedTuple):
    """What is computed of some rows.

    Attributes:
      tokens: that go through the layers.
      pairs: of a token and one that attention compares it with, masked ones included.
      predicted: places whose logits are taken.
    """

    tokens: int
    pairs: int
    predicted: int

    def operations(self, config: TransformerConfig) -> float:
        """Floating-point operations of products, with those of attention weighted by `PAIR_COST`."""
        heads = config.num_attention_heads * config.head_dim
        projections = config.hidden_size * (2 * heads + 2 * config.num_key_value_heads * config.head_dim)
        experts = config.experts
        inner = config.intermediate_size if experts is None else experts.per_token * experts.intermediate_size
        weights = projections + 3 * config.hidden_size * inner
        layers = config.num_hidden_layers * (2 * self.tokens * weights + PAIR_COST * 4 * heads * self.pairs)
        return layers + 2 * self.predicted * config.hidden_size * config.vocab_size


class Form(NamedTuple):
    """Rows that branch, ready for batches.

    Attributes:
      rows: `N`.
      shapes: of batches.
      widths: that hold the trees of all rows.
      reading: what is computed of them.
    """

    rows: Sequence[BranchedRow]
    shapes: tuple[Shape, ...]
    widths: Widths
    reading: Reading

    def part(self, numbers: Sequence[int]) -> Form:
        """Some of its rows, in batches of the same shapes."""
        return self._replace(rows=[self.rows[number] for number in numbers])

    def batches(self, chosen: ArrayLike | None = None) -> Iterator[Batch]:
        """Batches of the examples of the given numbers, or of all; `tree_arrays` has their trees."""
        numbers = None if chosen is None else np.asarray(chosen, np.int64)
        return sequence_batches(rows_as_examples(self.rows), self.shapes, data_mesh().size, numbers)


class BranchedPool(NamedTuple):
    """One row a prompt, with all candidates behind it.

    Attributes:
      plain: what is computed of a row for each candidate instead.
      whole: rows with the whole prompt.
      beginning: `P` tokens that all prompts begin with.
      behind: rows without them; None where P is 0.
    """

    plain: Reading
    whole: Form
    beginning: np.ndarray
    behind: Form | None

    def part(self, numbers: Sequence[int]) -> BranchedPool:
        """Some of its prompts, read as all of them are."""
        behind = None if self.behind is None else self.behind.part(numbers)
        return self._replace(whole=self.whole.part(numbers), behind=behind)

    def form(self, config: TransformerConfig, *, alike: bool) -> Form | None:
        """What is read with the least work; None for a row for each candidate.

        Args:
          config: shape of the model.
          alike: whether the beginning means the same in all rows, so that it may be read once.
        """
        forms = [self.whole, *([self.behind] if alike and self.behind is not None else [])]
        best = min(forms, key=lambda form: form.reading.operations(config))
        return best if best.reading.operations(config) < self.plain.operations(config) else None


def branch_pool(rows: Sequence[TokenizedExample], candidates: int, batch_size: int) -> BranchedPool | None:
    """One row for every C neighbours; None where the texts of some prompt have no token in common, or there are none.

    Args:
      rows: C for each prompt, side by side: it, with one of the candidates behind it.
      candidates: C.
      batch_size: prompts of a batch on each device; more where a row has fewer tokens than a prompt with one answer,
        so that as many are computed at once as of prompts with one answer each.
    """
    whole = branched_rows(rows, candidates)
    if not whole:
        return None
    lengths = row_lengths(rows)
    budget = batch_size * float(np.mean(lengths))
    predicted = sum(len(row.tokens) - row.prompt_length for row in rows)
    plain = Reading(int(lengths.sum()), int(np.square(lengths).sum()), predicted)
    beginning = shared_beginning(whole)
    count = len(beginning)
    behind = _form([without_beginning(row, count) for row in whole], batch_size, budget, count) if count else None
    return BranchedPool(plain, _form(whole, batch_size, budget), beginning, behind)


def _form(rows: Sequence[BranchedRow], batch_size: int, budget: float, before: int = 0) -> Form:
    """The rows, which stand behind so many tokens, in batches of so many rows, or tokens if that is more."""
    lengths = np.asarray([len(row.tokens) for row in rows], np.int64)
    together = max(batch_size, round(budget / float(np.mean(lengths))))
    shapes = budget_shapes(lengths.tolist(), together, BRANCHED_SHAPES, int(lengths.max()), data_mesh().size)
    pairs = int((lengths * (lengths + before)).sum()) + before**2
    predicted = sum(len({*row.tree.predictors}) for row in rows)
    return Form(rows, shapes, tree_widths(rows), Reading(int(lengths.sum()) + before, pairs, predicted))
