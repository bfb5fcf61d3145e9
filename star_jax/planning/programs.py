"""The programs that a run consists of: what each reads at a time, and how often it is run.

Sizes are those of one device and one batch. Seeds and strategies that share a pass share it here too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

import numpy as np

from star_jax.acquisition.needs import Embedding, GradientSketch, Group, Measure
from star_jax.acquisition.pools import PROMPT_SHAPES, SEQUENCE_SHAPES
from star_jax.acquisition.strategy import Strategy
from star_jax.config import ExperimentConfig
from star_jax.data.batching import Shape
from star_jax.data.bucketing import budget_shapes, prompt_shapes
from star_jax.data.step_shapes import fullest_hands, random_steps, step_ladder
from star_jax.experiment.lengths import Lengths
from star_jax.training.trainer import schedule_steps

Kind = Literal["generate", "score", "choose", "read", "sketch", "train"]
"""Answers that are written; rows with one answer that are scored; prompts with all answers of a closed set; prompts
that are read for their hidden states; gradients, a row at a time; training steps."""


OF_MODELS = (Measure, Embedding, GradientSketch)
"""Features that a model is asked for; others are made of them, or of the data."""


@dataclass(frozen=True)
class Program:
    """One program of a run. All are given an adapter; the base model's is one of 0.

    Attributes:
      name: for people; those of one name differ in their shape alone.
      phase: of the run: `score`, `train` or `evaluate`.
      kind: what it does.
      shape: of a device's rows.
      predicted: tokens whose logits are taken, on a device, in a batch.
      batches: how often it is run in all runs of the experiment together.
      written: new tokens of an answer, of a generation: as long as is to be expected, and as long as it may be.
      samples: Monte-Carlo samples; 1 for a pass without dropout.
    """

    name: str
    phase: str
    kind: Kind
    shape: Shape
    predicted: float
    batches: float
    written: tuple[float, int] = (0.0, 0)
    samples: int = 1


class Passes(NamedTuple):
    """Examples that go through each kind of pass of one seed, to choose examples.

    Attributes:
      base: whose measures of the base model are taken.
      plain: the same of the fine-tuned model, without dropout.
      sampled: the same with Monte-Carlo samples.
      drawn: to which several answers are drawn, by either model.
      embedded: prompts that are read for embeddings.
      sketched: gradients that are taken.
    """

    base: int
    plain: int
    sampled: int
    drawn: int
    embedded: int
    sketched: int


def query_sizes(config: ExperimentConfig, pool: int) -> list[int]:
    """Examples that each query after the first labels scores."""
    loop, most = config.loop, config.acquisition.score_at_most
    left = [pool - loop.initial_labels - number * loop.labels_per_round for number in range(loop.rounds - 1)]
    return [max(0, size if most is None else min(size, most)) for size in left]


def passes_of(config: ExperimentConfig, strategies: Sequence[Strategy], first: Strategy | None, pool: int) -> Passes:
    """What goes through the models to choose examples, for one seed.

    The base model's measures and vectors are taken once for all queries; the fine-tuned model's in each, and for each
    strategy, its vectors of the whole pool.

    Args:
      config: the experiment.
      strategies: of all runs.
      first: what picks the first labels; None where they are drawn.
      pool: prompts of it.
    """
    queries, most = query_sizes(config, pool), config.acquisition.score_at_most
    base = {need for one in (*strategies, *([] if first is None else [first])) for need in one.needs}
    base = {need for need in base if isinstance(need, OF_MODELS) and need.model == "base"}
    full = [need for one in strategies for need in one.needs if isinstance(need, OF_MODELS) and need.model == "full"]
    later, ways = pool * len(queries), [_ways(config, one) for one in strategies]
    # Gradients are of the answers to all prompts.
    asked = [later if _sketches(one) else sum(queries) for one in strategies]
    drawn = sum(any(need.of_answers for need in one.measures("full")) for one in strategies)
    scored = pool if most is None else min(pool, sum(queries))
    return Passes(
        base=scored * any(isinstance(need, Measure) and not need.of_answers for need in base),
        plain=sum(size for size, way in zip(asked, ways, strict=True) if False in way),
        sampled=sum(size for size, way in zip(asked, ways, strict=True) if True in way),
        drawn=sum(queries) * drawn + scored * any(isinstance(need, Measure) and need.of_answers for need in base),
        embedded=pool * any(isinstance(need, Embedding) for need in base)
        + later * sum(isinstance(need, Embedding) for need in full),
        sketched=pool * sum(isinstance(need, GradientSketch) for need in base)
        + later * sum(isinstance(need, GradientSketch) for need in full),
    )


def _ways(config: ExperimentConfig, strategy: Strategy) -> set[bool]:
    """The passes of the fine-tuned model that answer and score, with samples or without, as `active.features` has them:
    all measures of a strategy that are taken the same way come from one."""
    stochastic = config.scoring.posterior != "none"
    measures = [need for need in strategy.measures("full") if not need.of_answers]
    ways = {need.samples and stochastic for need in measures} | ({True} if strategy.detailed else set())
    return ways or ({False} if _sketches(strategy) or Group("answer") in strategy.needs else set())


def _sketches(strategy: Strategy) -> bool:
    return any(isinstance(need, GradientSketch) and need.model == "full" for need in strategy.needs)


class Batches:
    """Makes programs for rows of the lengths of an experiment.

    Args:
      config: the experiment.
      lengths: of its rows.
      devices: that share a batch.
      closed: tokens of all answers of a closed set together, which stand behind a prompt that is read once; 0 where
        there is none.
    """

    def __init__(self, config: ExperimentConfig, lengths: Lengths, devices: int, closed: int = 0) -> None:
        self.config, self.lengths, self.devices, self._closed = config, lengths, devices, closed
        prompts = np.concatenate([lengths.prompts, lengths.asked])
        rows = np.concatenate([lengths.likely, lengths.known])
        self._prompts = prompt_shapes(prompts, config.generation.batch_size, PROMPT_SHAPES, devices)
        self._rows = budget_shapes(rows, config.scoring.batch_size, SEQUENCE_SHAPES, lengths.longest, devices)
        limit = config.data.max_response_tokens
        self._response = float(np.mean(lengths.responses)) if len(lengths.responses) else float(limit)
        self._row = float(np.mean(rows)) if len(rows) else float(lengths.longest)

    def generate(self, name: str, phase: str, examples: float) -> Program:
        """Answers written to so many prompts."""
        shape = max(self._prompts, key=lambda shape: shape.capacity)
        batches = ceil(examples / (shape.rows * self.devices))
        written = min(self._response, self.config.data.max_response_tokens), self.config.data.max_response_tokens
        return Program(name, phase, "generate", shape, shape.rows * written[0], batches, written)

    def score(self, name: str, phase: str, examples: float, samples: int = 1) -> Program:
        """So many prompts with one response each, read."""
        shape = max(self._rows, key=lambda shape: (shape.rows * shape.width, shape.capacity))
        batches = ceil(examples * self._row / (shape.capacity * self.devices))
        predicted = shape.capacity * self._response / self._row
        return Program(name, phase, "score", shape, predicted, batches, samples=samples)

    def choose(self, name: str, phase: str, examples: float, samples: int = 1) -> Program:
        """So many prompts, each with all answers of a closed set behind it."""
        rows = np.concatenate([self.lengths.prompts, self.lengths.asked]) + self._closed
        size = self.config.scoring.batch_size
        shapes = budget_shapes(rows, size, SEQUENCE_SHAPES, int(rows.max()), self.devices)
        shape = max(shapes, key=lambda shape: (shape.rows * shape.width, shape.capacity))
        mean = float(np.mean(rows))
        batches = ceil(examples * mean / (shape.capacity * self.devices))
        predicted = shape.capacity * self._closed / mean
        return Program(name, phase, "choose", shape, predicted, batches, samples=samples)

    def read(self, name: str, phase: str, examples: float) -> Program:
        """So many prompts, read for their hidden states."""
        shape = max(self._prompts, key=lambda shape: shape.capacity)
        return Program(name, phase, "read", shape, 0.0, ceil(examples / (shape.rows * self.devices)))

    def sketch(self, name: str, phase: str, examples: float) -> Program:
        """Gradients of so many rows, one at a time."""
        shape = Shape(1, self.lengths.longest, self.lengths.longest)
        return Program(name, phase, "sketch", shape, self._response, ceil(examples / self.devices))

    def train(self, name: str, phase: str, labels: Sequence[int]) -> list[Program]:
        """A training on each of these numbers of labels, a program for each shape of its steps."""
        config, lengths = self.config.training, self.lengths
        sizes = config.batch_size, config.replay_rows
        longest = max([lengths.longest, *lengths.replay])
        drawn = random_steps(lengths.likely, lengths.replay, sizes)
        ladder = step_ladder(drawn, sum(sizes), longest, self.devices)
        shapes = ladder.usual or ladder.shapes[-1:]
        steps = sum(schedule_steps(count, config) for count in labels)
        totals = fullest_hands(drawn, self.devices) or [shapes[-1].capacity]
        places = [min(bisect_left([shape.capacity for shape in shapes], total), len(shapes) - 1) for total in totals]
        share = self._response / self._row
        return [
            Program(name, phase, "train", shapes[place], shapes[place].capacity * share, steps * count / len(totals))
            for place, count in sorted(Counter(places).items())
        ]


def programs_of(
    config: ExperimentConfig, strategies: Sequence[Strategy], first: Strategy | None, batches: Batches
) -> list[Program]:
    """The programs of an experiment, those left out that it does not run.

    Args:
      config: the experiment.
      strategies: of all runs.
      first: what picks the first labels; None where they are drawn.
      batches: made for its rows and devices.
    """
    seeds, runs, loop = len(config.seeds), len(config.seeds) * len(strategies), config.loop
    passes, samples = passes_of(config, strategies, first, batches.lengths.pool), config.scoring.mc_samples
    tests = len(batches.lengths.asked)
    labels = [loop.initial_labels + number * loop.labels_per_round for number in range(loop.rounds)] * runs
    written = {"generated": batches.generate, "candidates": batches.choose, "reference": batches.score}
    answer = written[config.scoring.answers]
    sampled = batches.choose if config.scoring.answers == "candidates" else batches.score
    judge = batches.choose if config.evaluation.judges_candidates(config.scoring.answers) else batches.generate
    # Samples score the answers that the model has written without dropout.
    plain = passes.plain + passes.sampled * (config.scoring.answers == "generated")
    found = [
        answer("base model on the pool", "score", seeds * passes.base),
        answer("model on the pool", "score", seeds * plain),
        sampled(f"{samples} dropout samples on the pool", "score", seeds * passes.sampled, samples=samples),
        batches.generate("drawn answers", "score", config.scoring.samples * seeds * passes.drawn),
        batches.read("prompts are embedded", "score", seeds * passes.embedded),
        batches.sketch("gradients are sketched", "score", seeds * passes.sketched),
        *batches.train("training", "train", labels),
        # The base model answers the test set too, once a seed.
        judge("model on the test set", "evaluate", tests * (runs * loop.rounds + seeds)),
        batches.score("test responses scored", "evaluate", tests * runs * loop.rounds),
    ]
    return [program for program in found if program.batches]
