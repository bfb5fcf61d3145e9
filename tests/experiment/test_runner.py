"""The shell around the loop: what the runs of an experiment share, and where their time goes."""

import dataclasses
import gc
import json
import logging
import shutil
import signal
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from star_jax.acquisition import pool_scoring, pools
from star_jax.active import features, loop
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.fingerprints import folder_fingerprint, former_fingerprint
from star_jax.checkpoints.hub import resolve_folder
from star_jax.cli import run as run_command
from star_jax.cli.guard import AGAIN, guarded_main
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data.batching import make_batch, sequence_batches
from star_jax.data.run_data import RunData, TokenizedSet
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import TokenizedExample
from star_jax.errors import ConfigError, LabelsNeeded
from star_jax.experiment import judging, setup
from star_jax.experiment import rounds as one_round
from star_jax.experiment import runner as experiment
from star_jax.parallel.mesh import data_mesh
from star_jax.registry import TRACKERS, load_plugins
from star_jax.runs.files import read_yaml
from star_jax.runs.partial_scores import PartialPass
from star_jax.runs.score_store import BaseScores
from star_jax.tracking import console
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import PHASES, Stopwatch
from star_jax.tracking.tracker import open_trackers

CONFIG = ExperimentConfig(
    strategies=("base_only",),
    lora=LoraConfig(rank=2, alpha=4, dropout=0.1, training_dropout="tied", targets=("q_proj",)),
    training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=16),
    scoring=ScoringConfig(mc_samples=2, batch_size=32),
    loop=LoopConfig(initial_labels=8, labels_per_round=4, rounds=2),
    data=DataConfig(task="skills", pool_size=50, test_limit=20, max_prompt_tokens=9, max_response_tokens=6),
    generation=GenerationConfig(batch_size=32),
)


@pytest.fixture
def base_passes(monkeypatch):
    """Sizes of what the base model is asked to score, one entry a pass."""
    sizes = []
    whole = judging.score_pool

    def counted(model, adapter, pool, **options):
        sizes.append(pool.size)
        return whole(model, adapter, pool, **options)

    monkeypatch.setattr(judging, "score_pool", counted)
    return sizes


def play(folder, **changes):
    config = dataclasses.replace(CONFIG, output_dir=str(folder), **changes)
    return experiment.run_experiment(config, Progress("silent"))


def picks(folder, strategy):
    return [path.read_bytes() for path in sorted((folder / strategy / "seed-0").glob("rounds/*/queried.jsonl"))]


def rows(folder, strategy):
    return [json.loads(line) for line in (folder / strategy / "seed-0" / "metrics.jsonl").read_text().splitlines()]


def test_the_base_model_scores_once_for_rounds_strategies_and_processes(tmp_path, base_passes):
    """Another strategy, of another measure, in a process of its own (nothing is kept but files), reads the scores."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    play(together)
    assert sorted(base_passes) == [20, 50]
    play(together, strategies=("pe_subtract",))
    assert sorted(base_passes) == [20, 50]
    play(alone, strategies=("pe_subtract",))
    assert sorted(base_passes) == [20, 20, 50, 50]
    assert len(picks(alone, "pe_subtract")) == 2
    assert picks(together, "pe_subtract") == picks(alone, "pe_subtract")
    first, second = (rows(folder, "pe_subtract")[-1] for folder in (together, alone))
    assert first["auroc_base"] == second["auroc_base"]


def test_a_run_of_an_earlier_version_goes_on_until_its_model_changes(tmp_path):
    """It knows the model by the hash that its version made, and keeps it."""
    model = tmp_path / "model"
    shutil.copytree(resolve_folder("embedded:skills"), model)
    parts = {"model": dataclasses.replace(CONFIG.model, path=str(model))}
    play(tmp_path / "run", **parts)
    stored = tmp_path / "run" / "base_only" / "seed-0" / "data.json"
    now = json.loads(stored.read_text())
    assert now["model"] == folder_fingerprint(model)
    stored.write_text(json.dumps(now | {"model": former_fingerprint(model)}))
    play(tmp_path / "run", **parts)
    assert json.loads(stored.read_text())["model"] == former_fingerprint(model)
    (model / "special_tokens_map.json").write_text("{ }")
    with pytest.raises(ConfigError, match=r"\(the files of model\.path have changed\)"):
        play(tmp_path / "run", **parts)


class Killed(Exception):
    """What ends a run in the middle of a scoring."""


def test_a_run_that_is_killed_while_it_scores_goes_on_there(tmp_path, monkeypatch):
    """In the base model's pass, then in the query's samples; the picks are those of a run that nothing stopped."""
    changes = {"strategies": ("star",), "scoring": dataclasses.replace(CONFIG.scoring, batch_size=6)}
    changes["generation"] = dataclasses.replace(CONFIG.generation, batch_size=6)
    play(tmp_path / "whole", **changes)
    add, take, begin = PartialPass.add, PartialPass.take, PartialPass.__init__
    passes: list[dict[str, Any]] = []
    stop = {"in": "answers"}

    def began(self, path, origin):
        passes.append({"name": path.name, "taken": 0, "added": 0})
        begin(self, path, origin)

    def added(self, batch, leaves):
        if passes[-1]["added"] == 3 and stop["in"] in passes[-1]["name"]:
            raise Killed
        passes[-1]["added"] += 1
        add(self, batch, leaves)

    def taken(self, batch):
        found = take(self, batch)
        passes[-1]["taken"] += found is not None
        return found

    for name, replacement in (("__init__", began), ("add", added), ("take", taken)):
        monkeypatch.setattr(PartialPass, name, replacement)
    for stop["in"] in ("answers", "full-samples-proposed"):
        with pytest.raises(Killed):
            play(tmp_path / "parts", **changes)
    assert [path.name for path in (tmp_path / "parts" / "star" / "seed-0").glob(".scores*")] != []
    passes.clear()
    stop["in"] = "nothing"
    play(tmp_path / "parts", **changes)
    of_query = {one["name"].removeprefix(".scores-001-"): one["taken"] for one in passes if "scores-001" in one["name"]}
    assert of_query["full-samples-proposed"] == 3
    assert of_query["full-samples-answers"] > 3
    assert picks(tmp_path / "parts", "star") == picks(tmp_path / "whole", "star")
    left = [path.name for path in (tmp_path / "parts").rglob(".*")]
    assert not [name for name in left if name.endswith(("-answers", "-proposed"))]


@pytest.fixture
def schedule(monkeypatch):
    """Seconds that pass, on the clock of the experiment, while a function of the loop or its shell works.

    It starts at 100. None pass elsewhere, and none are spent compiling.
    """
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(experiment, "Stopwatch", partial(Stopwatch, clock=lambda: clock.now, compiled=lambda: 0.0))

    def takes(module, name, seconds):
        whole = getattr(module, name)

        def worked(*args, **options):
            clock.now += seconds
            return whole(*args, **options)

        monkeypatch.setattr(module, name, worked)

    return takes


def test_seconds_of_a_run_are_those_of_its_rounds_whatever_the_sessions(tmp_path, monkeypatch, schedule):
    """Stopped while it writes the second round: what that round spent since it chose is lost, all else counts once.

    Nothing that takes time is in no phase.
    """
    for module, name, seconds in (
        *((experiment, "open_experiment", 50), (setup, "prepare", 7), (experiment, "judged_set", 3)),
        *(
            (judging, "score_pool", 20),
            (features, "score_pool", 30),
            (loop, "fit", 40),
            (judging, "evaluate", 11),
        ),
        *((one_round, "save_choice", 1), (one_round, "replace_folder_atomic", 2), (one_round, "save_state", 4)),
    ):
        schedule(module, name, seconds)
    whole = one_round.save_state

    def stopped(folder, state):
        if state.round == 2:
            raise KeyboardInterrupt
        whole(folder, state)

    monkeypatch.setattr(one_round, "save_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path, strategies=("star",))
    monkeypatch.setattr(one_round, "save_state", whole)
    (summary,) = play(tmp_path, strategies=("star",))

    written = [{name: row[f"{name}_seconds"] for name in PHASES} for row in rows(tmp_path, "star")]
    nothing = dict.fromkeys(PHASES, 0)
    assert written == [
        nothing | {"load": 60, "train": 40, "evaluate": 31, "write": 3},
        # Of the first session the scores and the first round's state; the choice's file came after they were counted.
        nothing | {"load": 60, "score": 50, "train": 40, "evaluate": 11, "write": 4 + 2},
    ]
    assert summary["seconds"] == {
        "total": 305,
        **nothing,
        **{"load": 120, "score": 50, "train": 80, "evaluate": 42, "write": 13},
    }


def test_each_round_of_an_undisturbed_run_counts_what_was_written_before_it(tmp_path, schedule):
    """The state is written after the row is, and counts in the next one."""
    schedule(one_round, "save_choice", 1)
    schedule(one_round, "save_state", 4)
    (summary,) = play(tmp_path)
    assert [row["write_seconds"] for row in rows(tmp_path, "base_only")] == [1, 5]
    assert summary["seconds"] == dict.fromkeys(PHASES, 0) | {"total": 10, "write": 10}


def test_a_folder_without_its_state_keeps_its_rounds_and_goes_on_once_it_has_it(tmp_path):
    """With other batch sizes, as a run would that had no memory left; config.yaml then has those."""
    (before,) = play(tmp_path)
    folder = tmp_path / "base_only" / "seed-0"
    (folder / "summary.json").unlink()
    (folder / "state").rename(folder / "elsewhere")
    smaller = {"scoring": ScoringConfig(mc_samples=2, batch_size=8), "generation": GenerationConfig(batch_size=16)}
    with pytest.raises(ConfigError, match=r"has 2 finished rounds, and .*state the state after none of them"):
        play(tmp_path, **smaller)
    assert len(rows(tmp_path, "base_only")) == len(picks(tmp_path, "base_only")) == 2
    (folder / "elsewhere").rename(folder / "state")
    assert read_yaml(folder / "config.yaml")["scoring"]["batch_size"] == 32
    (after,) = play(tmp_path, **smaller)
    assert after["accuracy"] == before["accuracy"]
    assert read_yaml(folder / "config.yaml")["scoring"]["batch_size"] == 8


def test_other_replay_rows_are_refused(tmp_path):
    replay = tmp_path / "replay.jsonl"
    examples = skills.pool_examples("R0", 9, 5)
    texts = [json.dumps({"id": one.id, "question": one.prompt.text, "answer": one.response}) for one in examples]
    replay.write_text("\n".join(texts[:4]))
    training = dataclasses.replace(CONFIG.training, replay=str(replay), replay_rows=2)
    changes = {"training": training, "loop": dataclasses.replace(CONFIG.loop, rounds=1)}
    play(tmp_path / "out", **changes)
    replay.write_text("\n".join(texts[1:]))
    with pytest.raises(ConfigError, match=r"\(the rows of training\.replay have changed\)"):
        play(tmp_path / "out", **changes)


def test_the_first_run_of_a_session_pays_for_loading(tmp_path, schedule):
    """And for what passed since the command was started."""
    schedule(experiment, "open_experiment", 50)
    config = dataclasses.replace(CONFIG, output_dir=str(tmp_path), strategies=("random", "base_only"))
    config = dataclasses.replace(config, loop=LoopConfig(initial_labels=8, labels_per_round=4, rounds=1))
    first, second = experiment.run_experiment(config, Progress("silent"), began=90.0)
    assert first["seconds"]["load"] == 10 + 50
    assert second["seconds"]["load"] == 0


def write_digits(path, rng, count):
    """Prompts of the skills whose answer is five digits."""
    texts = [" ".join(map(str, rng.integers(0, 10, 5))) for _ in range(count)]
    path.write_text("".join(json.dumps({"question": f"copy {text} =", "answer": text}) + "\n" for text in texts))
    return str(path)


def test_responses_that_are_cut_are_told_of_once_a_data_set(tmp_path, rng, caplog):
    """Two strategies, gold answers scored: test set and pool are read once. What is trained on is another set."""
    data = dataclasses.replace(
        CONFIG.data,
        train=write_digits(tmp_path / "train.jsonl", rng, 30),
        test=write_digits(tmp_path / "test.jsonl", rng, 20),
        max_response_tokens=3,
        too_long="truncate-left",
    )
    scoring = dataclasses.replace(CONFIG.scoring, answers="reference")
    with caplog.at_level(logging.WARNING):
        play(
            tmp_path / "out",
            data=data,
            scoring=scoring,
            strategies=("base_only", "random"),
            loop=dataclasses.replace(CONFIG.loop, rounds=1),
        )
    said = [record.getMessage() for record in caplog.records if "responses are over" in record.getMessage()]
    assert sorted(text.split()[0] for text in said) == ["20", "30", "8", "8"]


def noted_runs(monkeypatch):
    """The runs that an experiment goes through, in order, one entry a round."""
    runs, whole = [], experiment.play_round

    def noted(run, state):
        runs.append(run)
        return whole(run, state)

    monkeypatch.setattr(experiment, "play_round", noted)
    return runs


def test_runs_of_all_seeds_share_their_shapes_and_programs(tmp_path, monkeypatch):
    """The pools differ, in lengths too; what is compiled for one holds the others."""
    runs = noted_runs(monkeypatch)
    compiled = pool_scoring._answer._cache_size()
    play(tmp_path, seeds=(0, 1, 2))
    assert [run.seed for run in runs] == [0, 0, 1, 1, 2, 2]
    assert len({run.data.facts["pool"] for run in runs}) == 3
    assert len({run.problem.shapes for run in runs}) == 1
    assert pool_scoring._answer._cache_size() - compiled <= pools.PROMPT_SHAPES
    devices = data_mesh().size
    for run in runs:
        for batches, shapes in (
            (run.problem.pool.batches(), run.problem.shapes.prompts),
            (run.test.prompts.batches(), run.problem.shapes.prompts),
            (run.test.gold.batches(), run.problem.shapes.sequences),
        ):
            allowed = {(shape.rows * devices, shape.width, shape.capacity) for shape in shapes}
            assert {(*batch.tokens.shape, batch.capacity) for batch in batches} <= allowed
        assert sum(int(batch.row_mask.sum()) for batch in run.problem.pool.batches()) == 50


def random_data(rng, name, test):
    pool = [rng.integers(0, 9, length) for length in rng.integers(1, 90, rng.integers(1, 200))]
    return RunData([], pool, {}, test, frozenset(), {"pool": name})


def test_shapes_hold_the_rows_of_every_seed_and_one_pool_counts_once(rng):
    """On random lengths: a seed alone, seeds with the same pool, and seeds with others."""
    for _ in range(10):
        rows = [
            TokenizedExample(np.zeros(length, np.int32), max(1, length - 50))
            for length in rng.integers(2, 140, rng.integers(1, 100))
        ]
        test = TokenizedSet([], [np.zeros(int(n), np.int32) for n in rng.integers(1, 90, 30)], rows)
        seeds = [random_data(rng, str(number), test) for number in range(3)]
        encoder = SimpleNamespace(longest_row=lambda prompts: 90 + 50)
        context = SimpleNamespace(config=CONFIG, encoder=encoder, replay=rows[:5])
        alone, shapes = setup.experiment_shapes(context, seeds[:1]), setup.experiment_shapes(context, seeds)
        assert setup.experiment_shapes(context, seeds[:1] * 3) == alone
        assert len(shapes.prompts) <= pools.PROMPT_SHAPES
        for tokens in (*(one.tokens for one in seeds), test.prompts):
            batches = sequence_batches([TokenizedExample(one, len(one)) for one in tokens], shapes.prompts)
            assert sum(int(batch.row_mask.sum()) for batch in batches) == len(tokens)
        longest = TokenizedExample(np.zeros(140, np.int32), 90)
        batches = sequence_batches([longest, *rows], shapes.sequences)
        assert sum(int(batch.row_mask.sum()) for batch in batches) == len(rows) + 1
        assert make_batch(
            [longest] * CONFIG.training.batch_size, range(CONFIG.training.batch_size), shapes.training.shapes
        )


PLUGIN = """
import jax.numpy as jnp
from star_jax.acquisition.needs import Embedding, Measure
from star_jax.acquisition.strategy import register_strategy
from star_jax.annotators.annotator import Answer, register_annotator
from star_jax.tracking.tracker import register_tracker

NEEDS = (Embedding("full", "last", 4), Measure("margin", "base"), Measure("bald", samples=True))


@register_strategy("far", needs=NEEDS)
def far(key, pool, query):
    vectors, margin, bald = (pool[need] for need in NEEDS)
    scores = jnp.linalg.norm(vectors - vectors.mean(axis=0), axis=1) + margin + bald
    return jnp.argsort(jnp.where(pool.unlabelled, -scores, jnp.inf))[: query.count], scores * pool.unlabelled


@register_annotator("careful")
class Careful:
    def __init__(self, context):
        self.labels = context.labels

    def annotate(self, requests):
        return [self.answer(request.id, request.rank) for request in requests]

    def answer(self, name, rank):
        return Answer(name, None if rank % 4 == 3 else self.labels[name], "Ada", "2026-02-03T04:05:06")


@register_tracker("listed")
class Tracker:
    calls = []

    def start(self, run):
        self.calls.append((run.experiment, run.name, run.resumed))

    def log(self, values, step):
        self.calls.append((dict(values), step))

    def finish(self):
        self.calls.append("finish")

    def report(self, path):
        self.calls.append("report")
"""


def without_seconds(folder, strategy):
    """The rows of a run's metrics, but for what depends on the clock."""
    return [
        {name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows(folder, strategy)
    ]


@pytest.mark.usefixtures("registries")
def test_strategy_annotator_and_tracker_of_ones_own_run_and_a_run_is_taken_up(tmp_path, monkeypatch):
    """A quarter of what is picked is skipped and replaced; another run is stopped after two rounds and goes on."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    changes = {"plugins": (str(plugin),), "strategies": ("far",), "annotator": "careful"}
    changes["loop"] = dataclasses.replace(CONFIG.loop, rounds=3)
    load_plugins(changes["plugins"])
    calls = TRACKERS.get("listed").calls

    def run_in(folder):
        config = dataclasses.replace(CONFIG, output_dir=str(folder), **changes)
        experiment.run_experiment(config, Progress("silent"), tracking=open_trackers(["listed"], print))

    run_in(tmp_path / "whole")
    told, calls[:] = list(calls), []

    # What was skipped counts, and is in no training; who labelled the rest, and when, is written down.
    measured = rows(tmp_path / "whole", "far")
    assert [(row["labelled"], row["skipped"]) for row in measured] == [(8, 2), (12, 1), (16, 1)]
    assert json.loads((tmp_path / "whole" / "far" / "seed-0" / "summary.json").read_text())["skipped"] == 4
    files = sorted((tmp_path / "whole" / "far" / "seed-0").glob("rounds/*/queried.jsonl"))
    queried = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len({row["id"] for row in queried}) == len(queried) == 16 + 4
    for row in queried:
        assert (row["annotator"], row["labelled_at"]) == ("Ada", "2026-02-03T04:05:06")
        assert row.get("skipped", False) is (row["response"] is None) is (row["rank"] % 4 == 3)
    chosen = [row for row in queried if row["score"] is not None]
    assert len(chosen) == 8 + 2
    # The samples may agree on what comes late, but for rounding.
    assert all(row["base_uncertainty"] >= 0 and row["full_uncertainty"] > -1e-6 for row in chosen)
    assert all(row["full_uncertainty"] == row["uncertainty"] for row in chosen)
    known = [row for row in chosen if row["prediction"] is not None]
    assert len(known) >= 8  # not of what replaces a skipped example
    assert all(isinstance(row["prediction"], str) for row in known)
    assert all(row["prompt"].endswith("=") for row in queried)

    # Losses are counted in training steps, over all rounds; figures of a round in labels.
    assert (told[0], told[-1]) == (("whole", "far/seed-0", False), "finish")
    losses = [(values["train/cross_entropy"], step) for values, step in told[1:-1] if "train/cross_entropy" in values]
    assert [step for _, step in losses] == list(range(sum(row["train_steps"] for row in measured)))
    assert all(loss > 0 for loss, _ in losses)
    rounds = [(values, step) for values, step in told[1:-1] if "round/accuracy" in values]
    assert [step for _, step in rounds] == [8, 12, 16]
    assert [values["round/ece"] for values, _ in rounds] == [row["ece"] for row in measured]
    assert len(losses) + len(rounds) == len(told) - 2

    # Stopped, and taken up by the same command.
    whole = one_round.save_state

    def stopped(folder, state):
        whole(folder, state)
        if state.round == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(one_round, "save_state", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "stopped")
    assert calls[-1] == "finish"
    calls[:] = []
    run_in(tmp_path / "stopped")
    assert picks(tmp_path / "stopped", "far") == picks(tmp_path / "whole", "far")
    assert without_seconds(tmp_path / "stopped", "far") == without_seconds(tmp_path / "whole", "far")
    assert calls[0] == ("stopped", "far/seed-0", True)
    before = sum(row["train_steps"] for row in measured[:2])
    assert [step for values, step in calls[1:-1]] == [*range(before, len(losses)), 16]

    # Other source is another experiment.
    plugin.write_text(f"{PLUGIN}# changed")
    with pytest.raises(ConfigError, match=r"\(the files of the strategy or the task have changed\)"):
        run_in(tmp_path / "whole")


@pytest.mark.usefixtures("registries")
def test_a_caller_from_python_need_not_load_plugins(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from star_jax.acquisition.strategy import register_strategy\n"
        "register_strategy('first')(lambda key, pool, query: (~pool.unlabelled).argsort()[: query.count])\n"
    )
    play(tmp_path / "out", plugins=(str(tmp_path / "mine.py"),), strategies=("first",))
    assert len(picks(tmp_path / "out", "first")) == 2


def test_an_oracle_without_answers_says_how_to_go_on(tmp_path, rng):
    """Every run goes as far as its labels do, and nothing is lost."""
    test = write_digits(tmp_path / "test.jsonl", rng, 20)
    train = tmp_path / "train.jsonl"
    questions = [f"copy {' '.join(map(str, rng.integers(0, 10, 5)))} =" for _ in range(30)]
    train.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    data = dataclasses.replace(CONFIG.data, train=str(train), test=test)
    with pytest.raises(LabelsNeeded, match=r"^8 examples that were picked have no response in the pool, train-\d+ amo"):
        play(tmp_path / "out", data=data, annotator="oracle")
    assert not list((tmp_path / "out").rglob("labels.csv"))


class Listed(Progress):
    """Shows nothing and keeps every task: its name, its total, and what was counted."""

    def __init__(self):
        super().__init__("silent")
        self.tasks = []

    @contextmanager
    def task(self, name, total=None, unit="steps"):
        done = []
        yield done.append
        self.tasks.append((name, total, sum(done)))


def test_every_task_says_whose_it_is_and_ends_at_its_total(tmp_path):
    training = dataclasses.replace(CONFIG.training, validation_fraction=0.2)
    shown = Listed()
    experiment.run_experiment(dataclasses.replace(CONFIG, output_dir=str(tmp_path), training=training), shown)
    assert all(done == total > 0 for _, total, done in shown.tasks)
    assert all(name.startswith("base_only seed 0, round ") for name, _, _ in shown.tasks)
    totals = {name.removeprefix("base_only seed 0, "): total for name, total, _ in shown.tasks}
    held_out = [row["validation_examples"] for row in rows(tmp_path, "base_only")]
    assert totals == {
        "round 0/1: train": 8 - held_out[0],
        "round 0/1: base model on the test set": 20,
        "round 0/1: evaluate": 40,
        "round 0/1: validate": 2 * held_out[0],
        "round 1/1: base model on the pool": 50,
        "round 1/1: train": 12 - held_out[1],
        "round 1/1: evaluate": 40,
        "round 1/1: validate": 2 * held_out[1],
    }


def test_a_run_stops_one_step_after_an_interrupt_that_was_dropped_and_goes_on(tmp_path, monkeypatch, capfd):
    """Dropped in a callback of the garbage collector, as XLA's does, at a step of each round."""
    whole, taken, at = console.stop_if_asked, [], None

    def press(phase, info):
        gc.callbacks.remove(press)
        signal.raise_signal(signal.SIGINT)

    def step():
        whole()
        taken.append(None)
        if len(taken) == at:
            gc.callbacks.append(press)
            gc.collect()

    monkeypatch.setattr(console, "stop_if_asked", step)
    play(tmp_path / "whole")
    steps = len(taken)
    for at in (2, 7):
        taken.clear()
        assert at < steps
        assert guarded_main(lambda argv: len(play(tmp_path / "again")), [], "interrupted") == 130
        assert len(taken) == at
    at = None
    assert guarded_main(lambda argv: len(play(tmp_path / "again")), []) == 1
    assert picks(tmp_path / "again", "base_only") == picks(tmp_path / "whole", "base_only")
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_that_is_asked_to_end_finishes_its_step_and_goes_on_with_the_same_command(tmp_path, monkeypatch, capfd):
    """SIGTERM in the middle of steps of both rounds: nothing is interrupted, and the exit code says `again`."""
    whole, taken, at = console.stop_if_asked, [], None

    def step():
        taken.append(None)
        if len(taken) == at:
            signal.raise_signal(signal.SIGTERM)
            taken.append("the step went on")
        whole()

    def run():
        return guarded_main(
            lambda argv: len(play(tmp_path / "again")) - 1, [], "interrupted", run_command.WHEN_TERMINATED
        )

    monkeypatch.setattr(console, "stop_if_asked", step)
    before = signal.getsignal(signal.SIGTERM)
    play(tmp_path / "whole")
    for at in (3, 9):
        taken.clear()
        assert run() == AGAIN == 75
        assert taken[-1] == "the step went on"
        assert len(taken) == at + 1
        said = capfd.readouterr().err.splitlines()
        assert said[0] == "star_jax: asked to end; stops after this step"
        assert said[-1] == f"star_jax: {run_command.WHEN_TERMINATED}"
    at = None
    assert run() == 0
    assert picks(tmp_path / "again", "base_only") == picks(tmp_path / "whole", "base_only")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_is_run_after_each_round_and_may_fail(tmp_path, capfd):
    """It sees the finished round; where it fails, the run goes on, and counts."""
    command = 'echo "$STAR_JAX_ROUND $(wc -l < "$STAR_JAX_RUN_FOLDER/metrics.jsonl")" >> seen; echo no bucket; exit 7'
    config = dataclasses.replace(CONFIG, output_dir=str(tmp_path / "run"), after_round=f"cd {tmp_path}; {command}")
    experiment.run_experiment(config, Progress("lines"))
    assert (tmp_path / "seen").read_text().split() == ["0", "1", "1", "2"]
    said = capfd.readouterr().err
    assert said.count("warning: after_round ended with exit code 7 after round 1: no bucket") == 1
    assert "warning: after_round failed 2 times" in said
    other = dataclasses.replace(config, after_round=f"echo again >> {tmp_path}/seen")
    experiment.run_experiment(other, Progress("silent"))  # another command is the same run, which is finished
    assert "again" not in (tmp_path / "seen").read_text()


def test_the_base_models_accuracy_is_that_of_its_own_answers_and_costs_no_pass(tmp_path, base_passes):
    """The base model answers one test example at a time here, through another door."""
    play(tmp_path)
    assert sorted(base_passes) == [20, 50]
    written = rows(tmp_path, "base_only")
    context = setup.open_experiment(
        dataclasses.replace(CONFIG, output_dir=str(tmp_path / "other")), [], Progress("silent"), Stopwatch()
    )
    test = setup.load_seed(context, 0).test
    one = setup.experiment_shapes(context, [setup.load_seed(context, 0)])
    right = 0
    for example, prompt in zip(test.examples, test.prompts, strict=True):
        pool = pools.generated_pool(context.encoder, [prompt], one)
        answer = pool_scoring.generated_texts(pool_scoring.score_pool(context.model, None, pool), context.encoder)
        right += context.task.is_correct(answer[0], example.response)
    assert 0 < right < 20
    assert [row["base_accuracy"] for row in written] == [right / 20] * 2
    assert json.loads((tmp_path / "base_only" / "seed-0" / "summary.json").read_text())["base_accuracy"] == right / 20
    play(tmp_path, strategies=("random",))  # reads the answers from disk
    assert [row["base_accuracy"] for row in rows(tmp_path, "random")] == [right / 20] * 2
    assert sorted(base_passes) == [20, 50]


def test_base_scores_that_were_kept_without_answers_are_used_without(tmp_path, base_passes):
    """As an earlier version kept them: what is not known is left out, and nothing is computed for it."""
    play(tmp_path)
    kept = BaseScores.measures
    for path in (tmp_path / "base_only").glob("*"):
        shutil.rmtree(path)

    def without(self, pool, compute):
        return {name: values for name, values in kept(self, pool, compute).items() if not name.startswith("answer_")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseScores, "measures", without)
        (summary,) = play(tmp_path)
    assert [row["base_accuracy"] for row in rows(tmp_path, "base_only")] == [None, None]
    assert "base_accuracy" not in summary
    assert sorted(base_passes) == [20, 50]


def test_a_round_in_which_nothing_is_right_shows_what_was_answered(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Task, "is_correct", lambda self, prediction, reference: False)
    experiment.run_experiment(dataclasses.replace(CONFIG, output_dir=str(tmp_path)), Progress("lines"))
    said = [line for line in capsys.readouterr().err.splitlines() if "none of the 20 test answers is right" in line]
    assert ["round 0/1: none" in said[0], "round 1/1: none" in said[1], len(said)] == [True, True, 2]
    shown = tmp_path / "base_only" / "seed-0" / "rounds" / "001" / "predictions.jsonl"
    for line in shown.read_text().splitlines()[:3]:
        row = json.loads(line)
        assert f"{row['id']}: {row['prediction']!r}, expected {row['reference']!r}" in said[1]
    assert said[1].count("expected") == 3
