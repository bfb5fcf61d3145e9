"""The shell around the loop: what the runs of an experiment share, and where their time goes."""

import dataclasses
import json
import time

import numpy as np
import pytest

from star_jax import experiment
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.runtime.progress import Progress
from star_jax.runtime.timing import PHASES

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
    whole = experiment.score_pool

    def counted(model, adapter, pool, **options):
        sizes.append(pool.size)
        return whole(model, adapter, pool, **options)

    monkeypatch.setattr(experiment, "score_pool", counted)
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


def test_seconds_of_a_run_are_those_of_its_rounds_whatever_the_sessions(tmp_path, monkeypatch):
    """Stopped while it writes the second round: what that round spent since it chose is lost, all else counts once."""
    began, whole = time.monotonic(), experiment.save_state

    def stopped(folder, state):
        if state.round == 2:
            raise KeyboardInterrupt
        whole(folder, state)

    monkeypatch.setattr(experiment, "save_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path)
    first_session = time.monotonic() - began
    kept = rows(tmp_path, "base_only")[:1]
    with np.load(tmp_path / "base_only" / "seed-0" / "choice-001.npz") as arrays:
        chosen = sum(float(arrays[name]) for name in arrays.files if name.startswith("seconds."))
    monkeypatch.setattr(experiment, "save_state", whole)
    began = time.monotonic()
    (summary,) = play(tmp_path)
    second_session = time.monotonic() - began

    written = rows(tmp_path, "base_only")
    assert written[0] == kept[0]
    assert all(row[f"{name}_seconds"] >= 0 for row in written for name in PHASES)
    seconds = summary["seconds"]
    assert list(seconds) == ["total", *PHASES]
    assert seconds["total"] == pytest.approx(sum(seconds[name] for name in PHASES), abs=0.01)
    for name in PHASES:
        in_rows = sum(row[f"{name}_seconds"] for row in written)
        assert in_rows - 0.01 <= seconds[name] <= in_rows + (1.0 if name in ("write", "other") else 0.01)
    first_round = sum(written[0][f"{name}_seconds"] for name in PHASES)
    assert first_round < first_session
    assert seconds["total"] == pytest.approx(first_round + chosen + second_session, abs=0.05 * second_session + 0.2)
    assert written[0]["load_seconds"] > 0
    assert written[1]["score_seconds"] > 0
    assert np.isclose(written[0]["score_seconds"], 0, atol=0.05)


def test_the_first_run_of_a_session_pays_for_loading(tmp_path):
    began = time.monotonic() - 100
    config = dataclasses.replace(CONFIG, output_dir=str(tmp_path), strategies=("random", "base_only"))
    config = dataclasses.replace(config, loop=LoopConfig(initial_labels=8, labels_per_round=4, rounds=1))
    first, second = experiment.run_experiment(config, Progress("silent"), began)
    assert first["seconds"]["load"] > 100
    assert second["seconds"]["load"] < 10
