"""A whole pool through the model: answers, token statistics, measures. One jitted program a shape and kind of pass.

Another kind of pool is a class in `pools`, a branch in `score_pool` and one in `answered_rows`.

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

from star_jax.acquisition.branched_scoring import choose_pass, measures_of_choice, score_branched
from star_jax.acquisition.long_answers import is_long, long_answers
from star_jax.acquisition.pools import CandidatePool, GeneratedPool, Pool, ProposedPool, proposed_pool
from star_jax.acquisition.uncertainty import sequence_measures
from star_jax.data.batching import Batch
from star_jax.data.rows import AnsweredRows
from star_jax.data.tokenization import Encoder, TokenizedExample
from star_jax.errors import ConfigError
from star_jax.inference.batched import Logs, map_batches, map_stream, no_logs
from star_jax.inference.generation import PromptBatch, Stop, generate
from star_jax.inference.mc_dropout import DrawnWeights, Samples, Sampling, mc_score_responses, sample_keys
from star_jax.inference.posterior import WeightSampling
from star_jax.inference.scoring import TokenStatistics, candidate_log_probs, score_responses
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows, placed

Array = jax.Array


@dataclass(frozen=True)
class PoolScores:
    """Measures of a pool, and the answers they were taken on.

    Where only some examples were scored, the others' measures are NaN, or 0 where they are whole numbers, and their
    answers mean nothing.

    Attributes:
      measures: name -> `N`.
      responses: `N×R` generated tokens, or `N` numbers of the candidates chosen; None where proposed.
      lengths: `N` tokens of each generated response; None otherwise.
      probabilities: `N×K×C` of each candidate under each sample, where they were asked for.
    """

    measures: dict[str, Array]
    responses: Array | None = None
    lengths: Array | None = None
    probabilities: Array | None = None


AnySampling = Sampling | WeightSampling
"""Monte-Carlo dropout, or adapters drawn from a posterior."""


def passes_over(pool: Pool, sampling: AnySampling | None) -> int:
    """How many times `score_pool` goes through the pool, and counts its examples."""
    return 2 if isinstance(pool, GeneratedPool) and sampling is not None else 1


class _Pass(NamedTuple):
    """How a pool is gone through: see `score_pool`."""

    key: Array
    sampling: Samples | None
    chosen: ArrayLike | None
    on_batch: Callable[[int], None]
    logs: Logs
    detailed: bool


def score_pool(
    model: LanguageModel,
    adapter: Adapter | None,
    pool: Pool,
    *,
    key: Array | None = None,
    sampling: AnySampling | None = None,
    rows: ArrayLike | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
    logs: Logs = no_logs,
    detailed: bool = False,
) -> PoolScores:
    """Every measure of every example, or of some, on all local devices.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      pool: tokenised prompts with their kind of answer.
      key: PRNG key of the samples; needed with `sampling`.
      sampling: Monte-Carlo dropout, or adapters drawn from a posterior; None for one deterministic pass. A generated
        response is always the deterministic model's; the samples score it.
      rows: numbers of the examples that are scored, at least one; None for all.
      on_batch: told the number of examples of each batch, once the device has finished it.
      logs: gives what keeps the results of each pass as they come; what it has already is not computed again.
      detailed: whether the probabilities of all candidates are given too.

    Raises:
      ConfigError: sampling at rate 0; or probabilities of what is no closed set.
      ValueError: sampling without an adapter or a key.
    """
    if sampling is not None and (adapter is None or key is None):
        raise ValueError("samples are of an adapter and are drawn from a key; pass both")
    key = jax.random.key(0) if key is None else key
    sampler, samples = _drawn(adapter, sampling, key)
    if detailed and not isinstance(pool, CandidatePool):
        raise ConfigError("free answers have no list of probabilities; choose a task with a closed answer set")
    way = _Pass(key, samples, rows, on_batch, logs, detailed)
    model, adapter, sampler = placed(model), placed(adapter), placed(sampler)
    if isinstance(pool, GeneratedPool):
        answered = _answers(*merge_adapter(model, adapter), pool, way)
        if sampling is None:
            return answered
        written = proposed_pool(answered_rows(pool, answered), pool.sequences)
        return PoolScores(_proposed(model, sampler, written, way), answered.responses, answered.lengths)
    judge = merge_adapter(model, adapter) if sampling is None else (model, sampler)
    if isinstance(pool, CandidatePool):
        return _candidates(*judge, pool, way)
    return PoolScores(_proposed(*judge, pool, way))


def _drawn(adapter: Adapter | None, sampling: AnySampling | None, key: Array) -> tuple[Adapter | None, Samples | None]:
    """What samples are made with, and how they differ."""
    if isinstance(sampling, WeightSampling):
        return sampling.posterior.draw(key, sampling.samples), DrawnWeights(sampling.samples)
    return adapter, sampling


def _answers(model: LanguageModel, adapter: Adapter | None, pool: GeneratedPool, way: _Pass) -> PoolScores:
    """Responses, and the measures of the model that wrote them."""
    log = way.logs("answers")
    batches = pool.batches(way.chosen)
    if is_long(pool):
        found = map_stream(long_answers((model, adapter), pool), batches, 1, pool.size, way.on_batch, log)
        return PoolScores(*jax.tree.map(lambda leaf: leaf[:, 0], found))

    def run(batch: Batch) -> Any:
        rows = (batch.tokens, batch.lengths, batch.row_mask)
        return _answer(model, adapter, rows, capacity=batch.capacity, width=pool.response_limit, end_ids=pool.end_ids)

    return PoolScores(*map_batches(run, batches, 1, pool.size, way.on_batch, log))


def _candidates(model: LanguageModel, adapter: Adapter | None, pool: CandidatePool, way: _Pass) -> PoolScores:
    """Measures of the distribution over a closed set, and the likeliest of it."""
    branched, kind = choose_pass(model, pool.branched, way.key, way.sampling), "-detailed" if way.detailed else ""
    if branched is not None:
        branched, log = branched._replace(detailed=way.detailed), way.logs(f"branched{kind}")
        return _of_candidates(*score_branched(model, adapter, branched, way.chosen, way.on_batch, log))

    def run(batch: Batch) -> Any:
        shared, rows = (model, adapter, way.key), (_inputs(batch), batch.index)
        return _score_candidates(
            shared,
            rows,
            capacity=batch.capacity,
            candidates=pool.candidates,
            sampling=way.sampling,
            detailed=way.detailed,
        )

    batches, log = pool.batches(way.chosen), way.logs(f"candidates{kind}")
    return _of_candidates(*map_batches(run, batches, pool.candidates, pool.size, way.on_batch, log))


def _of_candidates(measures: dict[str, Array], choice: Array, probabilities: Array | None = None) -> PoolScores:
    return PoolScores(measures, choice, probabilities=probabilities)


def _proposed(model: LanguageModel, adapter: Adapter | None, pool: ProposedPool, way: _Pass) -> dict[str, Array]:
    """Measures of answers that are there already."""

    def run(batch: Batch) -> Any:
        rows = (_inputs(batch), batch.index)
        return _score_proposed((model, adapter, way.key), rows, capacity=batch.capacity, sampling=way.sampling)

    batches, log = pool.batches(way.chosen), way.logs("proposed")
    found: dict[str, Array] = map_batches(run, batches, 1, pool.size, way.on_batch, log)
    return found


def _inputs(batch: Batch) -> SequenceInputs:
    return SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)


def answered_rows(pool: Pool, scores: PoolScores) -> Sequence[TokenizedExample]:
    """Each prompt with the answer that its scores are of behind it.

    Args:
      pool: what was scored.
      scores: of it; of candidates, the chosen one is taken, and of a proposed answer that one.
    """
    if isinstance(pool, GeneratedPool):
        return AnsweredRows(pool.prompts, np.asarray(scores.responses), np.asarray(scores.lengths))
    if isinstance(pool, CandidatePool):
        chosen = np.arange(pool.size) * pool.candidates + np.asarray(scores.responses)
        return [pool.rows[place] for place in chosen.tolist()]
    return pool.rows


def answer_texts(encoder: Encoder, pool: Pool, scores: PoolScores, indices: ArrayLike) -> list[str] | None:
    """Text of the model's answers to some of a pool's prompts; None where it was the caller who proposed answers."""
    if isinstance(pool, ProposedPool):
        return None
    return [text.strip() for text in response_texts(encoder, pool, scores, indices)]


def response_texts(encoder: Encoder, pool: Pool, scores: PoolScores, indices: ArrayLike) -> list[str]:
    """Text of the responses that some of a pool's scores are of, as their tokens read."""
    rows = answered_rows(pool, scores)
    chosen = [rows[index] for index in np.asarray(indices).tolist()]
    return [encoder.text(row.tokens[row.prompt_length :]) for row in chosen]


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


@partial(jax.jit, static_argnames=("capacity", "candidates", "sampling", "detailed"))
def _score_candidates(
    shared: Any, rows: Any, *, capacity: int, candidates: int, sampling: Samples | None, detailed: bool = False
) -> tuple[Any, ...]:
    def score(shared: Any, rows: Any) -> tuple[Any, ...]:
        return measures_of_choice(
            candidate_log_probs(*_statistics(shared, rows, capacity, sampling), candidates), detailed
        )

    return by_rows(score, shared, rows)


@partial(jax.jit, static_argnames=("capacity", "sampling"))
def _score_proposed(shared: Any, rows: Any, *, capacity: int, sampling: Samples | None) -> dict[str, Array]:
    return by_rows(lambda shared, rows: sequence_measures(*_statistics(shared, rows, capacity, sampling)), shared, rows)


def _statistics(shared: Any, rows: Any, capacity: int, sampling: Samples | None) -> tuple[TokenStatistics, Array]:
    (model, adapter, key), (inputs, index) = shared, rows
    if sampling is None or adapter is None:
        return score_responses(model, adapter, inputs, capacity)
    return mc_score_responses(model, adapter, inputs, sample_keys(key, index, sampling), sampling, capacity)
