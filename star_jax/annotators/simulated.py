"""A simulated annotator: the pool's own responses, some of them wrong, some withheld, each at a cost. For experiments.

What it says of an example depends on the example's id and the annotator's seed alone, so that all strategies and seeds
of a comparison have the same annotator, whatever each of them asks for and when.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import numpy as np

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.config import SimulatedConfig
from star_jax.data.tasks.task import Task

NAME = "simulated"
"""What stands in the column annotator."""

TRIES = 64
"""Draws of another row's response before it counts as right after all: all of a pool may be the same."""


class SimulatedAnnotator:
    """Answers at once. A skip comes first: of what is not skipped, a share of `error_rate` is wrong."""

    def __init__(
        self, labels: Mapping[str, str], skipped: Collection[str], task: Task, settings: SimulatedConfig | None = None
    ) -> None:
        """An annotator.

        Args:
          labels: id -> right response.
          skipped: ids of what the pool itself says cannot be labelled.
          task: what a response must be, and which of them are the same.
          settings: how often it errs and skips, what it costs, its seed.
        """
        self._labels, self._skipped, self._task = labels, frozenset(skipped), task
        self._settings = settings or SimulatedConfig()

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to everything that the pool has a response to; the rest stays open."""
        known = [one.id for one in requests if one.id in self._labels or one.id in self._skipped]
        return [Answer(name, self._said(name), NAME, cost=self._settings.cost) for name in known]

    def price(self, requests: Sequence[Request]) -> list[float]:
        """The same for each."""
        return [self._settings.cost] * len(requests)

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Says that the pool has to be labelled."""
        return (
            f"{len(open_requests)} examples that were picked have no response in the pool, {open_requests[0].id} among "
            "them, and the annotator simulated has none of its own: label them there, or set annotator to csv"
        )

    def _said(self, name: str) -> str | None:
        """What is said of an example: its response, another one, or None for a skip."""
        if name in self._skipped:
            return None
        key = json.dumps([self._settings.seed, name]).encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()))
        skips, errs = rng.random(2) < (self._settings.skip_rate, self._settings.error_rate)
        if skips:
            return None
        return self._wrong(self._labels[name], rng) if errs else self._labels[name]

    def _wrong(self, right: str, rng: np.random.Generator) -> str:
        """Another answer of a closed set, each as likely; else the response of another row, as likely as it is often.

        So a wrong answer is one that somebody could have given. Where no other is found, it is the right one.
        """
        if self._task.candidates is not None:
            others = [answer for answer in self._task.candidates if not self._task.is_correct(answer, right)]
            return others[rng.integers(len(others))] if others else right
        drawn = (self._responses[index] for index in rng.integers(len(self._responses), size=TRIES))
        return next((response for response in drawn if not self._task.is_correct(response, right)), right)

    @cached_property
    def _responses(self) -> list[str]:
        """Of the pool, in the order of the ids, whatever that of its file is."""
        return [self._labels[name] for name in sorted(self._labels)]


def simulated(context: AnnotatorContext) -> SimulatedAnnotator:
    """The simulated annotator of a run."""
    return SimulatedAnnotator(context.labels, context.skipped, context.task, context.simulated)
