"""One round of one run: what is picked, labelled, trained on and judged, and its files, the checkpoint last."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from star_jax.active.budget import affordable, expected_costs, spent_tokens
from star_jax.active.loop import choose, learn
from star_jax.active.pool import available
from star_jax.active.state import Choice, LoopState
from star_jax.checkpoints.companions import copy_companions, tokenizer_files
from star_jax.checkpoints.files import read_object
from star_jax.checkpoints.peft import CONFIG_FILE, save_adapter
from star_jax.experiment.judging import judge, validate, with_base
from star_jax.experiment.one_run import Run, run_facts
from star_jax.experiment.resume import Bought, corrected_state, corrections, said_of
from star_jax.inference.batched import Logs
from star_jax.models.lora import Adapter, b_norm
from star_jax.parallel.hosts import readable, shared
from star_jax.report.model_card import model_card, usage_of
from star_jax.runs.files import replace_folder_atomic, write_text_atomic
from star_jax.runs.loop_state import KeptChoice, forget_choices, load_choice, save_choice, save_state
from star_jax.runs.partial_scores import PartialScores, query_origin
from star_jax.runs.records import group_counts, label_figures, length_correlation, nothing_right, queried_rows
from star_jax.runs.run_settings import choice_origin
from star_jax.tracking.console import round_title
from star_jax.tracking.observer import Timed
from star_jax.tracking.timing import added, row_seconds


def play_round(run: Run, state: LoopState) -> LoopState:
    """One round and its files."""
    context, folder = run.context, run.folder
    facts = run_facts(context, run.strategy, run.data, run.seed)
    key, origin = jax.random.key(run.seed), choice_origin(context.config.to_dict(), facts)
    scored_with = query_origin(f"{origin} {context.base.origin.decode()}", state, key, run.problem.shapes)
    with PartialScores(folder.path / f".scores-{state.round:03d}", scored_with) as scored:
        after = _play(run, state, key, origin, scored.log)
        scored.remove()
    with context.watch.phase("write"):
        shared(lambda: context.after_round(folder.path, state.round))
    return after


def _play(run: Run, state: LoopState, key: jax.Array, origin: str, logs: Logs) -> LoopState:
    """The round itself; the checkpoint is written last, and makes the round count."""
    context, problem, folder = run.context, run.problem, run.folder
    config, number = context.config, state.round
    candidates = np.asarray(available(state.pool))
    title = f"{run.title}, {round_title(number, config.loop.rounds)}"
    timed = Timed(context.progress, context.watch, title, logs)
    # 1. What to label, unless an interrupted session has chosen already.
    kept = shared(lambda: load_choice(folder.path, number, origin))
    if kept is None:
        state = with_base(run, state, timed.title)
        choice = within_budget(run, state, choose(config, run.strategy, problem, state, key, timed))
        chosen = KeptChoice(choice, context.watch.lap())
        with context.watch.phase("write"):
            shared(lambda: save_choice(folder.path, number, chosen, origin))
        kept = chosen
    # 2. Labels, those of earlier rounds as they have been corrected, and training.
    changed = corrections(
        problem.annotator, problem.prompts, Bought(dict(state.labels), np.asarray(state.pool.labelled_in))
    )
    if changed:
        context.progress.log(f"{timed.title}: {said_of(changed)}; they count from the next training on")
        state = corrected_state(state, changed)
    state, info = learn(config, problem, state, kept.choice, key, timed, run.strategy)
    assert state.adapter is not None
    adapter = state.adapter
    # 3. How good it is.
    with context.watch.phase("evaluate"):
        figures, predictions = judge(run, adapter, timed)
        held_out = validate(run, adapter, info.validation, timed.title)
    if figures["accuracy"] == 0:
        context.progress.log(f"{timed.title}: {nothing_right(predictions)}")
    # 4. Files.
    queried = queried_rows(context.task, problem, info, state.labels)
    row = {
        "round": number,
        "labelled": info.labelled,
        **figures,
        **held_out,
        "lora_b_norm": float(b_norm(adapter)),
        "train_loss": info.train_loss,
        "score_length_correlation": length_correlation(info, candidates),
        "picked_groups": group_counts([entry["group"] for entry in queried]),
    }
    row |= {"train_steps": len(info.losses)} | ({"skipped": skipped} if (skipped := info.skipped) else {})
    row |= {"corrected": len(changed)} if changed else {}
    row |= label_figures(context.task, info.answers)
    if config.loop.budget_unit == "tokens":
        given = (one.response for one in info.answers)
        row |= {"label_tokens": spent_tokens(problem, dict(zip(info.picked.tolist(), given, strict=True)))}
    own = readable(adapter)

    def write() -> dict[str, Any]:
        steps = sum(one.get("train_steps") or 0 for one in folder.metrics())
        folder.write_round(number, queried, predictions)
        if changed:
            folder.write_corrected(number, [one.row() for one in changed])
        replace_folder_atomic(folder.adapter, partial(_write_adapter, run, own, row))
        context.tracking.losses(info.losses, steps)
        # What is written from here on counts in the next row, or in the summary.
        timed_row = row | row_seconds(added([kept.seconds, context.watch.lap()]))
        folder.append_metrics(timed_row)
        save_state(folder.path, state._replace(adapter=own))
        forget_choices(folder.path)
        context.tracking.log({f"round/{name}": value for name, value in row.items()}, info.labelled)
        return timed_row

    with context.watch.phase("write"):
        timed_row = shared(write)
    context.forecast.add(run.strategy.name, timed_row)
    context.progress.round_finished(context.forecast)
    return state


SPENT = {"tokens": "label_tokens", "cost": "label_cost"}
"""`loop.budget_unit` -> the figure of a round that it is counted by."""


def within_budget(run: Run, state: LoopState, choice: Choice) -> Choice:
    """What of a choice the rounds so far have left money for; all of it where labels are counted.

    Raises:
      ConfigError: nobody knows what a label costs.
    """
    config, problem = run.context.config, run.problem
    if config.loop.budget_per_round is None:
        return choice
    spent = sum(row.get(SPENT[config.loop.budget_unit]) or 0 for row in shared(run.folder.metrics))
    left = config.loop.budget_per_round * (state.round + 1) - spent
    # Without a first label there would be nothing to train on.
    return affordable(choice, expected_costs(config, problem, state), left, least=int(not state.round))


def _write_adapter(run: Run, adapter: Adapter, metrics: Mapping[str, Any], path: Path) -> None:
    """A PEFT folder with its model card, and with the tokenizer and chat template that it was trained with."""
    context = run.context
    config, rslora = context.config, context.rslora
    base, root = config.model.path, context.model.config.module_root
    save_adapter(adapter, path, base_model=base, dropout=config.lora.dropout, rslora=rslora, root=root)
    copy_companions(tokenizer_files(context.folder.path), path)
    usage = usage_of(context.encoder, run.data.pool, read_object(path / CONFIG_FILE))
    card = model_card(config, run.strategy.name, run.seed, metrics, run.data.facts, usage)
    write_text_atomic(path / "README.md", card)
