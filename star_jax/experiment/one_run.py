"""One run of an experiment: what it consists of, its folder, and what it must find again there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from star_jax.acquisition.strategy import Strategy
from star_jax.active.state import Problem
from star_jax.checkpoints.fingerprints import fingerprint_like
from star_jax.data.run_data import RunData
from star_jax.evaluation.evaluator import TestSet
from star_jax.experiment.setup import ExperimentContext, Sources
from star_jax.parallel.hosts import shared
from star_jax.registry import source_fingerprint
from star_jax.runs.run_folder import RunFolder, stored_data


@dataclass(frozen=True)
class Run:
    """One strategy with one seed.

    Attributes:
      context: what it shares with other runs.
      strategy: from the registry.
      seed: of every choice that is left to chance.
      data: of that seed.
      problem: the same for the loop.
      test: test set.
      folder: open.
      title: its name on the screen.
    """

    context: ExperimentContext
    strategy: Strategy
    seed: int
    data: RunData
    problem: Problem
    test: TestSet
    folder: RunFolder
    title: str


def open_run_folder(context: Sources, strategy: Strategy, seed: int, data: RunData) -> RunFolder:
    """The folder of one run, locked by the leader; errors as those of `RunFolder.open`."""
    config = context.config
    device = jax.devices()[0].device_kind
    facts = run_facts(context, strategy, data, seed)
    return shared(lambda: RunFolder.open(config.output_dir, strategy.name, seed, config.to_dict(), device, facts))


def run_facts(context: Sources, strategy: Strategy, data: RunData, seed: int) -> dict[str, Any]:
    """What a run must find again: its data and model, and the code of a strategy or a task that is a plug-in.

    It is the leader's: the folder that it compares with is there.
    """
    return shared(lambda: _run_facts(context, strategy, data, seed))


def _run_facts(context: Sources, strategy: Strategy, data: RunData, seed: int) -> dict[str, Any]:
    task, config = context.task, context.config
    code = source_fingerprint([strategy.pick, task.prompt, task.response, task.parse])
    facts = data.facts if code is None else data.facts | {"plugins": code}
    # A run that an earlier version began goes on with the fingerprints of that version.
    before = stored_data(config.output_dir, strategy.name, seed)
    folders = {"model": context.folder.path, "start": Path(config.model.adapter or "")}
    found = {name: folder for name, folder in folders.items() if name in facts and name in before}
    return facts | {name: fingerprint_like(before[name], folder, facts[name]) for name, folder in found.items()}
