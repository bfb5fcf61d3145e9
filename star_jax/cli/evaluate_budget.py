"""`star-jax evaluate --label-budget`: accuracy on a test set without labels, from a few of them that a person gives.

The first call answers all prompts, draws some and writes them into a table; once it is filled in, the same call reads
it and says how good the answers are. What the model answered is kept beside the table, so that it is asked once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from star_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from star_jax.cli.answer_flags import Asked
    from star_jax.cli.evaluate import EvaluateFlags
    from star_jax.data.examples import Prompt
    from star_jax.data.tasks.task import Task
    from star_jax.evaluation.intervals import Estimate
    from star_jax.tracking.console import Progress


class Found(NamedTuple):
    """What a labelling budget says of an adapter.

    Attributes:
      accuracy: on all examples, with its interval.
      labels: that it is from.
      examples: of the test set.
    """

    accuracy: Estimate
    labels: int
    examples: int


def judge_with_budget(given: EvaluateFlags, asked: Asked, table: Path, progress: Progress) -> Found:
    """The accuracy of an adapter from labels for some prompts.

    Args:
      given: the flags.
      asked: what they mean.
      table: of labels; what is missing is written into it.
      progress: where to show what is going on.

    Raises:
      LabelsNeeded: labels are missing in the table.
      ConfigError, DataError: model, adapter, data or table cannot be used.
    """
    import numpy as np

    from star_jax.annotators.annotator import Request, collect
    from star_jax.annotators.csv_file import FileAnnotator
    from star_jax.checkpoints.hub import open_folder
    from star_jax.data.loading import load_pool
    from star_jax.data.tasks import get_task
    from star_jax.evaluation.accuracy import judge
    from star_jax.evaluation.active_testing import draw, estimate

    assert given.data is not None
    assert given.label_budget is not None
    folder = open_folder(asked.config.model.path)
    task = get_task(asked.config.data.task, asked.config.format, folder.tokenizer)
    loaded = load_pool(task, given.data, asked.config.data.on_bad_row)
    prompts, answered = _answers(given, asked, table, task, loaded.prompts, progress)
    if given.label_budget > len(prompts):
        raise ConfigError(
            f"--label-budget is {given.label_budget}, and {given.data} has {len(prompts)} prompts; lower it"
        )
    # A response that the task cannot read is right by no rule.
    sure = np.asarray([0.0 if task.parse(one["response"]) is None else one["confidence"] for one in answered])
    draws = draw(sure, given.label_budget, given.label_seed)
    places = draws.places.tolist()
    person = FileAnnotator(loaded.labels, [prompt.id for prompt in prompts], table, task)
    requests = [Request(prompts[place], rank) for rank, place in enumerate(places)]
    answers = collect(person, requests)
    skipped = [answer.id for answer in answers if answer.response is None]
    if skipped:
        raise DataError(
            f"{table}: {skipped[0]} is skipped, and leaving drawn examples out would bias the estimate; label it, or "
            f"take the row out of {given.data} and begin again"
        )
    labels = [str(answer.response) for answer in answers]
    right = judge(task, [answered[place]["response"] for place in places], labels)
    return Found(estimate(sure, draws, right), len(places), len(prompts))


def _answers(
    given: EvaluateFlags, asked: Asked, table: Path, task: Task, prompts: Sequence[Prompt], progress: Progress
) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """The prompts within the limits and the model's answers to them: `response` and `confidence` of each."""
    from star_jax.checkpoints.fingerprints import folder_fingerprint
    from star_jax.checkpoints.hub import open_folder
    from star_jax.data.run_data import fingerprint
    from star_jax.runs.files import plain, read_json, write_json_atomic

    folder, kept = open_folder(asked.config.model.path), answers_file(table)
    settings: Any = plain(asked.config.to_dict())
    known = [folder.fingerprint, folder_fingerprint(asked.adapter), fingerprint(prompts), settings]
    origin = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    by_id = {prompt.id: prompt for prompt in prompts}
    if kept.is_file():
        found = read_json(kept)
        if found.get("origin") != origin:
            raise ConfigError(
                f"{table} was drawn for another adapter, other data or other settings; name another file with --labels"
            )
        return [by_id[name] for name in found["answers"]], list(found["answers"].values())
    from star_jax.evaluation.predictions import answer_prompts
    from star_jax.experiment.answering import open_adapter

    opened = open_adapter(asked.config, folder, task, asked.adapter, asked.run)
    within = opened.answerer.encoder.within_limits(prompts, {}).kept
    if not within:
        raise ConfigError("no prompt is within --max-prompt-tokens; raise it, or set --too-long to truncate-left")
    with progress.task("answer", len(within), "prompts") as tick:
        answered = answer_prompts(opened.answerer, opened.adapter, within, on_batch=tick)
    rows: Mapping[str, dict[str, Any]] = {
        one.prompt.id: {"response": one.response, "confidence": min(one.confidence, 1.0)} for one in answered
    }
    write_json_atomic(kept, {"origin": origin, "answers": rows})
    return within, list(rows.values())


def answers_file(table: Path) -> Path:
    """Where the model's answers lie, beside the table of labels."""
    return table.parent / f".{table.name}.answers.json"


def said(found: Found, data: str) -> str:
    """The accuracy in a sentence."""
    value, low, high = found.accuracy
    return (
        f"accuracy {value:.3f} on the {found.examples} prompts of {data}, 95 % interval {low:.3f} to {high:.3f}, from "
        f"{found.labels} labels"
    )
