"""Floating-point operations by formula: what the algorithm needs for real tokens, and nothing of padding.

A multiply and an add are two operations; only matrix products count. For a sequence of T tokens, R of them at
positions whose next token is looked at:

- projections: 2 · N · T, N the parameters of all layers' projections, without embedding and head;
- causal attention: position t sees t + 1 keys, so 4 · H·d · T(T + 1)/2 a layer (2 · H·d for Q·K, 2 · H·d for P·V);
- head: 2 · V · D · R, whatever logits are computed beyond those R positions;
- LoRA that is not merged: 2 · r · (in + out) · T a projection.

Training LoRA costs the forward pass, the gradient to the inputs (the same products once more, twice for attention,
which has two inputs each), and the gradient of A and B alone: 4 · N · T for the frozen weights, not 6 · N · T. What
is computed again in the backward pass is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from workload import Sequence as Tokens
from workload import Shape, Workload


class Work(NamedTuple):
    """What one run of a task does.

    Attributes:
      units: examples, or new tokens where a task generates; what its rate counts.
      tokens: tokens that go through the model, every pass counted.
      flops: operations.
    """

    units: int
    tokens: int
    flops: float

    def __add__(self, other: tuple) -> Work:
        """The sums."""
        return Work(*(mine + its for mine, its in zip(self, other, strict=True)))


class Parts(NamedTuple):
    """Operations of a forward pass over one sequence, by where they are spent."""

    projections: float
    attention: float
    head: float
    lora: float


def forward(shape: Shape, rank: int, tokens: int, looked_at: int) -> Parts:
    """A forward pass over a sequence of `tokens`, with the head at `looked_at` positions; rank 0 without LoRA."""
    widths = shape.projections.values()
    return Parts(
        projections=2.0 * shape.layers * sum(fan_in * out for fan_in, out in widths) * tokens,
        attention=4.0 * shape.layers * shape.heads * shape.head_dim * tokens * (tokens + 1) / 2,
        head=2.0 * shape.vocab * shape.width * looked_at,
        lora=2.0 * shape.layers * rank * sum(fan_in + out for fan_in, out in widths) * tokens,
    )


def training(shape: Shape, rank: int, tokens: int, looked_at: int) -> float:
    """One step of LoRA training on a sequence: forward, gradient to inputs, gradient of the factors."""
    parts = forward(shape, rank, tokens, looked_at)
    return 2 * parts.projections + 3 * parts.attention + 2 * parts.head + 3 * parts.lora


def scoring_work(workload: Workload, rows: Sequence[Tokens], passes: int, lora: bool) -> Work:
    """Scoring the responses of `rows`."""
    rank = workload.rank if lora else 0
    parts = [forward(workload.shape, rank, len(row.tokens), row.response_length) for row in rows]
    flops = passes * sum(sum(part) for part in parts)
    return Work(len(rows), passes * _tokens(rows), flops)


def training_work(workload: Workload, rows: Sequence[Tokens]) -> Work:
    """One pass of LoRA training over `rows`."""
    flops = sum(training(workload.shape, workload.rank, len(row.tokens), row.response_length) for row in rows)
    return Work(len(rows), _tokens(rows), flops)


def generation_work(
    workload: Workload, prompt_lengths: Iterable[int], lora: bool, written: Sequence[int] | None = None
) -> Work:
    """Prefill and decoding; the last new token is written and never read.

    Args:
      workload: sizes.
      prompt_lengths: tokens of each prompt.
      lora: whether the adapter is a product of its own.
      written: tokens of each answer, where they end by themselves: then it is prompts that are counted. Those of all
        have the workload's length where it is None.
    """
    rank, lengths = workload.rank if lora else 0, list(prompt_lengths)
    new = [workload.new_tokens] * len(lengths) if written is None else written
    read = [length + more - 1 for length, more in zip(lengths, new, strict=True)]
    flops = sum(sum(forward(workload.shape, rank, *pair)) for pair in zip(read, new, strict=True))
    return Work(sum(new) if written is None else len(lengths), sum(read), flops)


def work_of(
    task: str,
    workload: Workload,
    merged: tuple[bool, bool],
    check: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Work:
    """What one run of a task does.

    Args:
      task: of `workload.TASKS`.
      workload: sizes.
      merged: whether LoRA was merged into the weights for what has no dropout, and for each Monte-Carlo sample, which
        saves its products; the merging itself is not counted.
      check: results of the run: what the round `picked` from its pool, `tokens` that were written.

    Raises:
      ValueError: no such task.
    """
    sequences = workload.sequences()
    rows = sequences[: workload.examples]
    if task == "score-k1":
        return scoring_work(workload, rows, 1, lora=not merged[0])
    if task == "score-k3":
        return scoring_work(workload, rows, workload.samples, lora=not merged[1])
    if task == "train":
        return training_work(workload, rows)
    if task == "generate":
        lengths = [row.prompt_length for row in sequences[: workload.prompts]]
        answers = np.reshape(check["tokens"], (-1, workload.new_tokens)) if workload.ends else None
        written = None if answers is None else np.count_nonzero(answers, axis=1).tolist()
        return generation_work(workload, lengths, lora=not merged[0], written=written)
    picked = check.get("picked")
    if task != "round" or picked is None:
        raise ValueError(f"no work is known of the task {task!r}")
    pool = workload.pool_sequences()
    parts = (
        scoring_work(workload, pool, 1, lora=False),
        scoring_work(workload, pool, workload.samples, lora=not merged[1]),
        training_work(workload, [pool[int(i)] for i in picked]),
        generation_work(workload, map(len, workload.test_prompts()), lora=not merged[0]),
    )
    total = sum(parts[1:], start=parts[0])
    return total._replace(units=len(pool))


def _tokens(rows: Sequence[Tokens]) -> int:
    return sum(len(row.tokens) for row in rows)
