"""Runs with a budget in tokens or money, and a rule to stop by: what they buy, when they end, how they go on."""

import dataclasses
import json

import pytest
from shapes import have_one_shape

from star_jax.benchmarks.skills import generator as skills
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    SimulatedConfig,
    TrainingConfig,
)
from star_jax.errors import ConfigError
from star_jax.experiment import runner
from star_jax.tracking.console import Progress

CONFIG = ExperimentConfig(
    strategies=("random",),
    lora=LoraConfig(rank=2, alpha=4, dropout=0.0, training_dropout="off", targets=("q_proj",)),
    training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=16),
    scoring=ScoringConfig(batch_size=32),
    loop=LoopConfig(initial_labels=12, labels_per_round=12, rounds=3),
    data=DataConfig(task="skills", pool_size=50, test_limit=12, max_prompt_tokens=9, max_response_tokens=6),
    generation=GenerationConfig(batch_size=32),
)


@pytest.fixture(autouse=True)
def _one_shape(monkeypatch):
    have_one_shape(monkeypatch)


def play(folder, loop, **changes):
    config = dataclasses.replace(
        CONFIG, output_dir=str(folder), loop=dataclasses.replace(CONFIG.loop, **loop), **changes
    )
    return runner.run_experiment(config, Progress("silent"))[0]


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / "random" / "seed-0" / name).read_text().splitlines()]


def test_a_budget_of_tokens_is_kept_and_a_run_that_stopped_goes_on_without_its_rule(tmp_path):
    budget = {"budget_unit": "tokens", "budget_per_round": 60.0}
    always = budget | {"stop_when": "accuracy >= 0"}
    summary = play(tmp_path, always)
    assert (summary["rounds"], summary["stopped"]) == (
        1,
        f"accuracy is {summary['accuracy']:.4f}, at least 0, after 1 round",
    )
    assert play(tmp_path, always) == summary
    whole = play(tmp_path, budget)
    assert (whole["rounds"], whole.get("stopped")) == (3, None)
    metrics, spent = rows(tmp_path), 0.0
    for number, row in enumerate(metrics):
        bought = rows(tmp_path, f"rounds/{number:03d}/queried.jsonl")
        words = sum(len(one["prompt"].split()) + len(one["response"].split()) + 1 for one in bought)  # and the end
        assert row["label_tokens"] == words
        # What is left over goes to the next round; a response is longer than expected now and then.
        spent += row["label_tokens"]
        longest = skills.MAX_PROMPT_TOKENS + skills.MAX_RESPONSE_TOKENS
        assert 60 * (number + 1) - 2 * longest <= spent <= 60 * (number + 1) + len(bought) * skills.MAX_RESPONSE_TOKENS
    assert whole["label_tokens"] == spent
    assert metrics[-1]["labelled"] < CONFIG.loop.budget


def test_a_budget_of_money_buys_what_it_can_pay_for(tmp_path):
    simulated = {"annotator": "simulated", "simulated": SimulatedConfig(cost=0.5)}
    money = {"budget_unit": "cost", "budget_per_round": 2.6, "rounds": 2}
    summary = play(tmp_path, money, **simulated)
    metrics = rows(tmp_path)
    # 2.6 buys five; of 5.2, 2.7 are left, which buys five more.
    assert [(row["labelled"], row["label_cost"]) for row in metrics] == [(5, 2.5), (10, 2.5)]
    assert summary["label_cost"] == 5.0
    with pytest.raises(ConfigError, match="annotator oracle does not say what a label costs"):
        play(tmp_path / "other", money, annotator="oracle")
    assert not (tmp_path / "other" / "random" / "seed-0" / "metrics.jsonl").exists()
