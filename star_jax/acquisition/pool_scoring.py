"""A whole pool through the model: answers, token statistics, measures. One jitted program a bucket and model.

Results stay on the device until every batch has been dispatched; nothing is read back in between. What the
scorer is given has no gold response: an answer is the model's own, one of a closed set, or proposed by the
caller, and only the last can hold one (the `reference` oracle).

Shapes: `N` pool, `B` batch, `P` prompt tokens, `T` tokens, `R` response tokens, `C` candidates, `K` MC samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.measures import sequence_measures
from star_jax.data.batching import (
    Batch,
    Encoder,
    Row,
    grouped_batches,
    prompt_batches,
    sequence_batches,
)
from star_jax.data.examples import Prompt
from star_jax.inference.generation import generate
from star_jax.inference.mc_dropout import mc_score_responses
from star_jax.inference.scoring import TokenStatistics, candidate_statistics, score_responses
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, append_responses, sequence_inputs
from star_jax.models.transformer import LanguageModel

Array = jax.Array


class Sampling(NamedTuple):
    """Monte-Carlo dropout of a scoring pass: K samples at a rate, tied or per token."""

    samples: int
    rate: float
    mode: str


class GeneratedPool(NamedTuple):
    """Prompts whose answer is the model's own greedy response, at most `width` tokens, or to one of `end_ids`."""

    batches: tuple[Batch, ...]
    size: int
    width: int
    end_ids: tuple[int, ...]


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


def generated_pool(encoder: Encoder, prompts: Sequence[Prompt], batch_size: int) -> GeneratedPool:
    """Tokenises prompts once for all rounds."""
    batches = tuple(prompt_batches(encoder.prompts(prompts), encoder.limits, batch_size))
    return GeneratedPool(batches, len(prompts), encoder.limits.response, encoder.end_ids)


def candidate_pool(
    encoder: Encoder, prompts: Sequence[Prompt], candidates: Sequence[str], batch_size: int
) -> CandidatePool:
    """Tokenises every prompt with every candidate behind it.

    Raises:
      DataError: a candidate has more tokens than a response may have.
    """
    rows = encoder.candidates(prompts, candidates)
    batches = tuple(grouped_batches(rows, len(candidates), encoder.limits, batch_size))
    return CandidatePool(batches, len(prompts), len(candidates))


def check_candidates(encoder: Encoder, prompt: Prompt, candidates: Sequence[str]) -> None:
    """Refuses candidates that are too long, as `candidate_pool` does, but on one prompt: before a run writes files.

    Raises:
      DataError: a candidate has more tokens than a response may have.
    """
    encoder.candidates([prompt], candidates)


def proposed_pool(encoder: Encoder, rows: Sequence[Row], batch_size: int) -> ProposedPool:
    """Batches rows whose responses somebody proposes."""
    return ProposedPool(tuple(sequence_batches(rows, encoder.limits, batch_size)), len(rows))


def score_pool(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: Pool,
    *,
    key: Array | None = None,
    sampling: Sampling | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> PoolScores:
    """Every measure of every example.

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

    def run(batch: Batch) -> tuple[dict[str, Array], Array | None, Array | None]:
        inputs = sequence_inputs(batch.tokens, batch.prompt_lengths, batch.lengths)
        match pool:
            case GeneratedPool():
                return _score_generated(
                    model,
                    adapter,
                    inputs,
                    batch.index,
                    batch.row_mask,
                    key,
                    width=pool.width,
                    end_ids=pool.end_ids,
                    sampling=sampling,
                )
            case CandidatePool():
                return _score_candidates(
                    model,
                    adapter,
                    inputs,
                    batch.index,
                    key,
                    width=batch.width,
                    candidates=pool.candidates,
                    sampling=sampling,
                )
            case ProposedPool():
                return _score_proposed(model, adapter, inputs, batch.index, key, width=batch.width, sampling=sampling)

    group = pool.candidates if isinstance(pool, CandidatePool) else 1
    results = list(_paced(run, pool.batches, group, on_batch))
    place = _places(pool.batches, group, pool.size)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts)[place], *results)
    return PoolScores(*joined)


def generated_texts(scores: PoolScores, encoder: Encoder) -> list[str]:
    """Text of each generated response.

    Raises:
      ValueError: the scores are not of a generated pool.
    """
    if scores.responses is None or scores.lengths is None:
        raise ValueError("only the scores of a generated pool come with texts")
    responses, lengths = np.asarray(scores.responses), np.asarray(scores.lengths)
    return [encoder.text(row[:length]) for row, length in zip(responses, lengths, strict=True)]


def _paced(
    run: Callable[[Batch], tuple], batches: Iterable[Batch], group: int, on_batch: Callable[[int], None]
) -> Iterable[tuple]:
    """Runs every batch, at most two ahead of the device, so that progress is real and queues stay short."""
    waiting: list[tuple[tuple, int]] = []
    for batch in batches:
        result = run(batch)
        waiting.append((result, int(batch.row_mask.sum()) // group))
        if len(waiting) > 2:
            done, rows = waiting.pop(0)
            jax.block_until_ready(done)
            on_batch(rows)
        yield result
    for done, rows in waiting:
        jax.block_until_ready(done)
        on_batch(rows)


def _places(batches: Sequence[Batch], group: int, size: int) -> np.ndarray:
    """Where each example's result stands in the concatenated batches."""
    place = np.full(size, -1, np.int64)
    start = 0
    for batch in batches:
        index, real = batch.index[::group], batch.row_mask[::group]
        place[index[real]] = start + np.flatnonzero(real)
        start += len(index)
    assert (place >= 0).all(), "every example must be in a batch"
    return place


@partial(jax.jit, static_argnames=("width", "end_ids", "sampling"))
def _score_generated(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: SequenceInputs,
    index: Array,
    row_mask: Array,
    key: Array,
    *,
    width: int,
    end_ids: tuple[int, ...],
    sampling: Sampling | None,
) -> tuple[dict[str, Array], Array, Array]:
    responses, lengths = generate(
        model, adapter, inputs.tokens, inputs.prompt_lengths, width=width, eos_id=end_ids, row_mask=row_mask
    )
    sequences = append_responses(inputs.tokens, inputs.prompt_lengths, responses, lengths)
    statistics, mask = _statistics(model, adapter, sequences, index, key, width, sampling)
    return sequence_measures(statistics, mask), responses, lengths


@partial(jax.jit, static_argnames=("width", "candidates", "sampling"))
def _score_candidates(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: SequenceInputs,
    index: Array,
    key: Array,
    *,
    width: int,
    candidates: int,
    sampling: Sampling | None,
) -> tuple[dict[str, Array], Array, None]:
    statistics, mask = _statistics(model, adapter, inputs, index, key, width, sampling)
    over_candidates, choice_mask, choice = candidate_statistics(statistics, mask, candidates)
    return sequence_measures(over_candidates, choice_mask), choice, None


@partial(jax.jit, static_argnames=("width", "sampling"))
def _score_proposed(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: SequenceInputs,
    index: Array,
    key: Array,
    *,
    width: int,
    sampling: Sampling | None,
) -> tuple[dict[str, Array], None, None]:
    statistics, mask = _statistics(model, adapter, inputs, index, key, width, sampling)
    return sequence_measures(statistics, mask), None, None


def _statistics(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: SequenceInputs,
    index: Array,
    key: Array,
    width: int,
    sampling: Sampling | None,
) -> tuple[TokenStatistics, Array]:
    if sampling is None or adapter is None:
        return score_responses(model, adapter, inputs, width)
    return mc_score_responses(model, adapter, inputs, width, key=key, index=index, **sampling._asdict())
