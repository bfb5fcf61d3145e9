"""A whole pool through the model: answers, token statistics, measures. One jitted program a shape and kind of pass.

Results stay on the device until every batch has been dispatched. What the scorer is given has no gold response: an
answer is the model's own, one of a closed set, or proposed by the caller, and only the last can hold one (the
`reference` oracle).

Shapes: `N` pool, `B` batch, `P` prompt tokens, `T` tokens, `R` new tokens, `C` candidates, `K` MC samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch, Shape, grouped_batches, prompt_batches, sequence_batches
from star_jax.data.bucketing import Shapes, budget_shapes, prompt_shapes
from star_jax.data.examples import Prompt
from star_jax.data.tokenization import Encoder, TokenizedExample
from star_jax.inference.batched import map_batches
from star_jax.inference.generation import PromptBatch, Stop, generate
from star_jax.inference.mc_dropout import Sampling, mc_score_responses, sample_keys
from star_jax.inference.scoring import TokenStatistics, candidate_statistics, score_responses
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, data_mesh, replicated

Array = jax.Array

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
      batches: of prompts.
      prompts: their tokens, in order.
      size: N.
      response_limit: most tokens of a response.
      end_ids: tokens that end one.
      sequences: shapes of prompts with their answers.
    """

    batches: tuple[Batch, ...]
    prompts: tuple[np.ndarray, ...]
    size: int
    response_limit: int
    end_ids: tuple[int, ...]
    sequences: tuple[Shape, ...]


class CandidatePool(NamedTuple):
    """Prompts whose answer is one of a closed set of C; each batch holds B·C rows."""

    batches: tuple[Batch, ...]
    size: int
    candidates: int


class ProposedPool(NamedTuple):
    """Prompts with an answer that the caller proposes."""

    batches: tuple[Batch, ...]
    size: int


Pool = GeneratedPool | CandidatePool | ProposedPool


@dataclass(frozen=True)
class PoolScores:
    """Measures of a pool, and the answers they were taken on.

    Attributes:
      measures: name -> `N`.
      responses: `N×R` generated tokens, or `N` numbers of the candidates chosen; None where proposed.
      lengths: `N` tokens of each generated response; None otherwise.
    """

    measures: dict[str, Array]
    responses: Array | None = None
    lengths: Array | None = None


def choose_shapes(prompts: Sequence[int], sequences: Sequence[int], longest: int, batch_sizes: BatchSizes) -> Shapes:
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
    """Batches prompts, as `encoder.prompts` makes them, once for all rounds."""
    batches = tuple(prompt_batches(prompts, shapes.prompts, data_mesh().size))
    limit = encoder.limits.response
    return GeneratedPool(batches, tuple(prompts), len(prompts), limit, encoder.end_ids, shapes.sequences)


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
    batches = tuple(grouped_batches(rows, count, shapes, data_mesh().size))
    return CandidatePool(batches, len(prompts), count)


def check_candidates(encoder: Encoder, prompt: Prompt, candidates: Sequence[str]) -> None:
    """Refuses candidates that are too long, as `candidate_pool` does, but on one prompt: before a run writes files.

    Raises:
      DataError: a candidate has more tokens than a response may have.
    """
    encoder.candidates([prompt], candidates)


def proposed_pool(rows: Sequence[TokenizedExample], shapes: Sequence[Shape]) -> ProposedPool:
    """Batches rows whose responses somebody proposes."""
    return ProposedPool(tuple(sequence_batches(rows, shapes, data_mesh().size)), len(rows))


def passes_over(pool: Pool, sampling: Sampling | None) -> int:
    """How many times `score_pool` goes through the pool, and counts its examples."""
    return 2 if isinstance(pool, GeneratedPool) and sampling is not None else 1


def score_pool(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: Pool,
    *,
    key: Array | None = None,
    sampling: Sampling | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> PoolScores:
    """Every measure of every example, on all local devices.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      pool: tokenised prompts with their kind of answer.
      key: PRNG key of the dropout masks; needed with `sampling`.
      sampling: Monte-Carlo dropout; None for one deterministic pass. A generated response is always the
        deterministic model's; the samples score it.
      on_batch: told the number of examples of each batch, once the device has finished the one before.

    Raises:
      ConfigError: sampling at rate 0.
      ValueError: sampling without an adapter or a key.
    """
    if sampling is not None and (adapter is None or key is None):
        raise ValueError("Monte-Carlo dropout acts on an adapter and draws from a key; pass both")
    key = jax.random.key(0) if key is None else key
    model, adapter = replicated(model), replicated(adapter)
    if isinstance(pool, GeneratedPool):
        answered = _answers(*merge_adapter(model, adapter), pool, on_batch)
        if sampling is None:
            return answered
        rows = answered_rows(pool, answered)
        measures = _proposed(model, adapter, proposed_pool(rows, pool.sequences), key, sampling, on_batch)
        return PoolScores(measures, answered.responses, answered.lengths)
    judge = merge_adapter(model, adapter) if sampling is None else (model, adapter)
    if isinstance(pool, CandidatePool):
        return _candidates(*judge, pool, key, sampling, on_batch)
    return PoolScores(_proposed(*judge, pool, key, sampling, on_batch))


def _answers(
    model: LanguageModel, adapter: Adapter | None, pool: GeneratedPool, on_batch: Callable[[int], None]
) -> PoolScores:
    """Responses, and the measures of the model that wrote them."""

    def run(batch: Batch) -> Any:
        rows = (batch.tokens, batch.lengths, batch.row_mask)
        return _answer(model, adapter, rows, capacity=batch.capacity, width=pool.response_limit, end_ids=pool.end_ids)

    return PoolScores(*map_batches(run, pool.batches, 1, pool.size, on_batch))


def _candidates(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: CandidatePool,
    key: Array,
    sampling: Sampling | None,
    on_batch: Callable[[int], None],
) -> PoolScores:
    def run(batch: Batch) -> Any:
        shared, rows = (model, adapter, key), (_inputs(batch), batch.index)
        return _score_candidates(shared, rows, capacity=batch.capacity, candidates=pool.candidates, sampling=sampling)

    return PoolScores(*map_batches(run, pool.batches, pool.candidates, pool.size, on_batch))


def _proposed(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: ProposedPool,
    key: Array,
    sampling: Sampling | None,
    on_batch: Callable[[int], None],
) -> dict[str, Array]:
    def run(batch: Batch) -> Any:
        rows = (_inputs(batch), batch.index)
        return _score_proposed((model, adapter, key), rows, capacity=batch.capacity, sampling=sampling)

    return map_batches(run, pool.batches, 1, pool.size, on_batch)


def _inputs(batch: Batch) -> SequenceInputs:
    return SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)


def answered_rows(pool: Pool, scores: PoolScores) -> list[TokenizedExample]:
    """Each prompt with the answer that its scores are of behind it.

    Args:
      pool: what was scored.
      scores: of it; of candidates, the chosen one is taken, and of a proposed answer that one.
    """
    if isinstance(pool, GeneratedPool):
        responses, lengths = np.asarray(scores.responses), np.asarray(scores.lengths)
        return [
            TokenizedExample(np.concatenate([prompt, response[:length]]), len(prompt))
            for prompt, response, length in zip(pool.prompts, responses, lengths, strict=True)
        ]
    group = pool.candidates if isinstance(pool, CandidatePool) else 1
    chosen = np.zeros(pool.size, np.int64) if scores.responses is None else np.asarray(scores.responses)
    rows: dict[int, TokenizedExample] = {}
    for batch in pool.batches:
        for start in np.flatnonzero(batch.row_mask[::group]) * group:
            example = int(batch.index[start])
            row = int(start + chosen[example])
            tokens = np.asarray(batch.tokens[row, : batch.lengths[row]])
            rows[example] = TokenizedExample(tokens, int(batch.prompt_lengths[row]))
    return [rows[example] for example in range(pool.size)]


def answer_texts(encoder: Encoder, pool: Pool, scores: PoolScores, indices: ArrayLike) -> list[str] | None:
    """Text of the model's answers to some of a pool's prompts; None where it was the caller who proposed answers."""
    if isinstance(pool, ProposedPool):
        return None
    rows = answered_rows(pool, scores)
    chosen = [rows[index] for index in np.asarray(indices).tolist()]
    return [encoder.text(row.tokens[row.prompt_length :]).strip() for row in chosen]


def answered_shapes(pool: Pool) -> Sequence[Shape]:
    """Shapes of batches of a pool's prompts with one answer each, whichever it is."""
    if isinstance(pool, GeneratedPool):
        return pool.sequences
    group = pool.candidates if isinstance(pool, CandidatePool) else 1
    rows = group * data_mesh().size
    return sorted({Shape(len(batch.index) // rows, batch.tokens.shape[1], batch.capacity) for batch in pool.batches})


def generated_texts(scores: PoolScores, encoder: Encoder) -> list[str]:
    """Text of each generated response.

    Raises:
      ValueError: the scores are not of a generated pool.
    """
    if scores.responses is None or scores.lengths is None:
        raise ValueError("only the scores of a generated pool come with texts")
    responses, lengths = np.asarray(scores.responses), np.asarray(scores.lengths)
    return [encoder.text(row[:length]) for row, length in zip(responses, lengths, strict=True)]


@partial(jax.jit, static_argnames=("capacity", "width", "end_ids"))
def _answer(
    model: LanguageModel, adapter: Adapter | None, rows: Any, *, capacity: int, width: int, end_ids: tuple[int, ...]
) -> tuple[dict[str, Array], Array, Array]:
    def answer(shared: Any, rows: Any) -> tuple[dict[str, Array], Array, Array]:
        model, adapter = shared
        prompts, lengths, row_mask = rows
        batch = PromptBatch(prompts, lengths, row_mask)
        written = generate(model, adapter, batch, Stop(width, end_ids), capacity=capacity, scored=True)
        assert written.statistics is not None
        mask = jnp.arange(width)[None] < written.lengths[:, None]
        return sequence_measures(written.statistics, mask), written.tokens, written.lengths

    return by_rows(answer, (model, adapter), rows)


@partial(jax.jit, static_argnames=("capacity", "candidates", "sampling"))
def _score_candidates(
    shared: Any, rows: Any, *, capacity: int, candidates: int, sampling: Sampling | None
) -> tuple[dict[str, Array], Array]:
    def score(shared: Any, rows: Any) -> tuple[dict[str, Array], Array]:
        found = _statistics(shared, rows, capacity, sampling)
        over_candidates, mask, choice = candidate_statistics(*found, candidates)
        return sequence_measures(over_candidates, mask), choice

    return by_rows(score, shared, rows)


@partial(jax.jit, static_argnames=("capacity", "sampling"))
def _score_proposed(shared: Any, rows: Any, *, capacity: int, sampling: Sampling | None) -> dict[str, Array]:
    return by_rows(lambda shared, rows: sequence_measures(*_statistics(shared, rows, capacity, sampling)), shared, rows)


def _statistics(shared: Any, rows: Any, capacity: int, sampling: Sampling | None) -> tuple[TokenStatistics, Array]:
    (model, adapter, key), (inputs, index) = shared, rows
    if sampling is None or adapter is None:
        return score_responses(model, adapter, inputs, capacity)
    return mc_score_responses(model, adapter, inputs, sample_keys(key, index, sampling), sampling, capacity)
