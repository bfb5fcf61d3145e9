"""Kinds of pools: prompts with the kind of answer that is scored, as rows of tokens and shapes of batches.

Batches are made when they are asked for, of all examples or of some. What the scorer is given has no gold response: an
answer is the model's own, one of a closed set, or proposed by the caller, and only the last can hold one (the
`reference` oracle).

Shapes: `N` pool, `B` batch, `R` new tokens, `C` candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from star_jax.acquisition.branched_pool import BranchedPool, branch_pool
from star_jax.data.batching import Batch, Shape, grouped_batches, prompt_batches, sequence_batches
from star_jax.data.bucketing import Shapes, budget_shapes, prompt_shapes
from star_jax.data.examples import Prompt
from star_jax.data.rows import PromptRows, row_lengths
from star_jax.data.tokenization import Encoder, TokenizedExample
from star_jax.models.architecture import TransformerConfig
from star_jax.parallel.mesh import data_mesh

PROMPT_SHAPES, SEQUENCE_SHAPES, CANDIDATE_SHAPES = 2, 2, 2
"""Shapes of batches of prompts, of prompts with a response, and of prompts with all candidates: each is a program more
to compile for every kind of pass over them, and leaves less padding."""


class BatchSizes(NamedTuple):
    """Rows of a batch, on each device.

    Attributes:
      prompts: that are answered together.
      sequences: prompts with a response, or with all candidates, that are scored together, on average.
    """

    prompts: int
    sequences: int


class GeneratedPool(NamedTuple):
    """Prompts whose answer is the model's own greedy response.

    Attributes:
      prompts: their tokens, in order.
      shapes: of batches of them.
      response_limit: most tokens of a response.
      end_ids: tokens that end one.
      sequences: shapes of prompts with their answers.
    """

    prompts: Sequence[np.ndarray]
    shapes: tuple[Shape, ...]
    response_limit: int
    end_ids: tuple[int, ...]
    sequences: tuple[Shape, ...]

    @property
    def size(self) -> int:
        """N."""
        return len(self.prompts)

    @property
    def rows(self) -> Sequence[TokenizedExample]:
        """What a batch has rows of: the prompts alone."""
        return PromptRows(self.prompts)

    @property
    def answered_shapes(self) -> tuple[Shape, ...]:
        """Shapes of batches of prompts with one answer each."""
        return self.sequences

    def batches(self, chosen: ArrayLike | None = None) -> Iterator[Batch]:
        """Batches of the examples of the given numbers, or of all."""
        return prompt_batches(self.prompts, self.shapes, data_mesh().size, _numbers(chosen))


class CandidatePool(NamedTuple):
    """Prompts whose answer is one of a closed set of C.

    Attributes:
      rows: C for each prompt, side by side: it, with one of the candidates behind it.
      shapes: of batches, each of whole prompts.
      candidates: C.
      branched: the same as one row a prompt; None where that cannot be.
    """

    rows: Sequence[TokenizedExample]
    shapes: tuple[Shape, ...]
    candidates: int
    branched: BranchedPool | None = None

    @property
    def size(self) -> int:
        """N."""
        return len(self.rows) // self.candidates

    @property
    def answered_shapes(self) -> tuple[Shape, ...]:
        """Shapes of batches of prompts with one answer each."""
        return tuple(shape._replace(rows=shape.rows // self.candidates) for shape in self.shapes)

    def shapes_read(self, config: TransformerConfig) -> tuple[Shape, ...]:
        """Shapes of the batches that a model of that shape reads, the larger ones where it depends on the pass."""
        form = None if self.branched is None else self.branched.form(config, alike=False)
        return self.shapes if form is None else form.shapes

    def part(self, numbers: Sequence[int]) -> CandidatePool:
        """Some of its prompts, in batches of the same shapes, so that the same programs read them."""
        count = self.candidates
        rows = [row for number in numbers for row in self.rows[number * count : (number + 1) * count]]
        return self._replace(rows=rows, branched=None if self.branched is None else self.branched.part(numbers))

    def batches(self, chosen: ArrayLike | None = None) -> Iterator[Batch]:
        """Batches of B·C rows, of the examples of the given numbers, or of all."""
        return grouped_batches(self.rows, self.candidates, self.shapes, data_mesh().size, _numbers(chosen))


class ProposedPool(NamedTuple):
    """Prompts with an answer that the caller proposes.

    Attributes:
      rows: each prompt with its answer behind it.
      shapes: of batches of them.
    """

    rows: Sequence[TokenizedExample]
    shapes: tuple[Shape, ...]

    @property
    def size(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def answered_shapes(self) -> tuple[Shape, ...]:
        """Shapes of batches of prompts with one answer each."""
        return self.shapes

    def batches(self, chosen: ArrayLike | None = None) -> Iterator[Batch]:
        """Batches of the examples of the given numbers, or of all."""
        return sequence_batches(self.rows, self.shapes, data_mesh().size, _numbers(chosen))


Pool = GeneratedPool | CandidatePool | ProposedPool


def _numbers(chosen: ArrayLike | None) -> np.ndarray | None:
    return None if chosen is None else np.asarray(chosen, np.int64)


def longest_row(pool: Pool) -> int:
    """Tokens of the longest row that is read, without what is generated behind it."""
    return int(row_lengths(pool.rows).max())


def choose_shapes(
    prompts: Sequence[int] | np.ndarray, sequences: Sequence[int] | np.ndarray, longest: int, batch_sizes: BatchSizes
) -> Shapes:
    """Shapes with little padding for rows of known lengths, that hold a row of any length.

    Args:
      prompts: lengths of the prompts that will be answered.
      sequences: lengths of prompts with responses, of those that are known and may be looked at.
      longest: tokens of the longest prompt with a response that there may be.
      batch_sizes: how rows will be batched.
    """
    return Shapes(
        prompt_shapes(prompts, batch_sizes.prompts, PROMPT_SHAPES, data_mesh().size),
        budget_shapes(sequences, batch_sizes.sequences, SEQUENCE_SHAPES, longest, data_mesh().size),
    )


def generated_pool(encoder: Encoder, prompts: Sequence[np.ndarray], shapes: Shapes) -> GeneratedPool:
    """A pool of prompts as `encoder.prompts` makes them."""
    return GeneratedPool(prompts, shapes.prompts, encoder.limits.response, encoder.end_ids, shapes.sequences)


def candidate_pool(
    encoder: Encoder, prompts: Sequence[Prompt], candidates: Sequence[str], batch_size: int
) -> CandidatePool:
    """Tokenises every prompt with every candidate behind it; `batch_size` prompts a batch on each device.

    Raises:
      DataError: a candidate has more tokens than a response may have.
    """
    rows, count = encoder.candidates(prompts, candidates), len(candidates)
    sizes = np.asarray([len(row.tokens) for row in rows]).reshape(-1, count)
    # A prompt's rows are all as long as the longest of them here, so that whole prompts fill a batch.
    longest = np.repeat(sizes.max(axis=1), count).tolist()
    shapes = budget_shapes(longest, batch_size * count, CANDIDATE_SHAPES, max(longest), data_mesh().size)
    shapes = tuple(
        shape._replace(rows=-(-shape.rows // count) * count, capacity=max(shape.capacity, count * shape.width))
        for shape in shapes
    )
    return CandidatePool(rows, shapes, count, branch_pool(rows, count, batch_size))


def check_candidates(encoder: Encoder, prompt: Prompt, candidates: Sequence[str]) -> None:
    """Refuses candidates that are too long, as `candidate_pool` does, but on one prompt: before a run writes files.

    Raises:
      DataError: a candidate has more tokens than a response may have.
    """
    encoder.candidates([prompt], candidates)


def proposed_pool(rows: Sequence[TokenizedExample], shapes: Sequence[Shape]) -> ProposedPool:
    """A pool of rows whose responses somebody proposes."""
    return ProposedPool(rows, tuple(shapes))
