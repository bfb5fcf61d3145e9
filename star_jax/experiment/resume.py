"""Taking a run up again: what its folder says must add up, and what was corrected since is taken over.

A run folder has the labels, round by round, and the state has which examples they belong to. Where the two contradict
each other, nothing is trained on less than was paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from star_jax.active.pool import SKIPPED, UNLABELLED, PoolState
from star_jax.active.state import LoopState
from star_jax.annotators.annotator import Annotator, Answer, Request, Rereadable
from star_jax.data.examples import Prompt
from star_jax.errors import ConfigError, DataError
from star_jax.runs.records import given_by
from star_jax.runs.run_folder import RunFolder
from star_jax.runs.run_labels import read_labels, record_refusal

NAMED = 5
"""Corrected examples that a line names; it counts the others."""


@dataclass(frozen=True)
class Bought:
    """What a run folder has of labels.

    Attributes:
      labels: index in the pool -> response.
      labelled_in: `N` int32, as `PoolState.labelled_in`.
    """

    labels: dict[int, str]
    labelled_in: np.ndarray


@dataclass(frozen=True)
class Correction:
    """An answer that is another than the one that was used.

    Attributes:
      index: of the example in the pool.
      answer: of today.
      before: the response that was used; None where the example was skipped.
    """

    index: int
    answer: Answer
    before: str | None

    def row(self) -> dict[str, Any]:
        """Row of corrected.jsonl."""
        return {"id": self.answer.id, "response": self.answer.response, "before": self.before, **given_by(self.answer)}


def drop_unfinished(folder: RunFolder, rounds: int) -> None:
    """Drops what a killed run wrote of a round whose state it did not come to write, which is one round at most.

    Raises:
      ConfigError: the state is of another round than the records.
    """
    numbers = [row.get("round") for row in folder.metrics()]
    written = len(numbers)
    if numbers != list(range(written)):
        raise ConfigError(
            f"{folder.path / 'metrics.jsonl'} must hold the rounds 0, 1, … in order, and holds {numbers}; put the file "
            "back, or delete the folder to start again"
        )
    if written > rounds + 1:
        raise ConfigError(
            f"{folder.path} has {written} finished rounds, and {folder.path / 'state'} the state after "
            f"{rounds or 'none'} of them; put the newest state back, or delete the folder to start again"
        )
    if written < rounds:
        raise ConfigError(
            f"{folder.path / 'state'} is the state after {rounds} rounds, and metrics.jsonl has {written}; put "
            "metrics.jsonl back, or delete the folder to start again"
        )
    folder.drop_rounds_from(rounds)


def labels_bought(folder: RunFolder, pool: Sequence[Prompt], rounds: int) -> Bought:
    """The labels bought so far, from the run folder: nobody is asked twice. What was skipped has none.

    Raises:
      ConfigError: a file is missing, or what it holds is not what metrics.jsonl counts, or not of this pool.
      DataError: a file is damaged.
    """
    place = {prompt.id: index for index, prompt in enumerate(pool)}
    found = Bought({}, np.full(len(pool), UNLABELLED, np.int32))
    for name, label in read_labels(folder.path, folder.metrics()[:rounds]).items():
        if name not in place:
            raise record_refusal(label.file, f"holds {name!r}, which the pool does not have")
        _take(found, place[name], label.response, label.round)
    return found


def check_state(folder: RunFolder, found: Bought, pool: PoolState) -> None:
    """Refuses a state that has other examples labelled than the records.

    Raises:
      ConfigError: naming both.
    """
    labelled_in = np.asarray(pool.labelled_in)
    if labelled_in.shape != found.labelled_in.shape or (labelled_in != found.labelled_in).any():
        raise ConfigError(
            f"{folder.path / 'state'} and {folder.path / 'rounds'} do not name the same labelled examples; put back "
            "what was changed, or delete the folder to start again"
        )


def corrections(annotator: Annotator, pool: Sequence[Prompt], found: Bought) -> list[Correction]:
    """Answers that have been corrected since they were used, in the pool's order; nobody is asked.

    Raises:
      DataError: what the annotator reads cannot be used.
    """
    if not isinstance(annotator, Rereadable):
        return []
    used = np.flatnonzero(found.labelled_in != UNLABELLED).tolist()
    answers = {answer.id: answer for answer in annotator.current([Request(pool[index]) for index in used])}
    changed = []
    for index in used:
        answer, before = answers.get(pool[index].id), found.labels.get(index)
        if answer is not None and answer.response != before:
            changed.append(Correction(index, answer, before))
    return changed


def corrected_state(state: LoopState, changed: Sequence[Correction]) -> LoopState:
    """The state with the answers of today; which examples may still be picked stays the same."""
    found = Bought(dict(state.labels), np.array(state.pool.labelled_in))
    for one in changed:
        _take(found, one.index, one.answer.response, state.round)
    pool = PoolState(jnp.asarray(found.labelled_in))
    return state._replace(labels=dict(sorted(found.labels.items())), pool=pool)


def said_of(changed: Sequence[Correction]) -> str:
    """How many answers have been corrected, and which."""
    names = [one.answer.id for one in changed]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    label = "1 label has" if len(names) == 1 else f"{len(names)} labels have"
    return f"{label} been corrected since the last training ({', '.join(names[:NAMED])}{more})"


def _take(found: Bought, index: int, response: str | None, number: int) -> None:
    """Notes an answer that round `number` was the first to train on, or to leave out."""
    found.labels.pop(index, None)
    if response is None:
        found.labelled_in[index] = SKIPPED
        return
    if found.labelled_in[index] < 0:
        found.labelled_in[index] = number
    found.labels[index] = response


def finished_since(folder: RunFolder, annotator: Annotator, pool: Sequence[Prompt]) -> str | None:
    """What to say of a finished run whose labels have been corrected, or whose records do not add up; None else."""
    try:
        changed = corrections(annotator, pool, labels_bought(folder, pool, len(folder.metrics())))
    except (ConfigError, DataError) as error:
        return str(error)
    return f"{said_of(changed)}; delete {folder.path} to train on them" if changed else None
