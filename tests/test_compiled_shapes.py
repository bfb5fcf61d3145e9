"""A whole run compiles a handful of model programs, whatever the lengths of its rows; its later rounds compile nothing.

Belongs here: what is compiled over a run. That a program is right is for the tests of its module.
"""

import dataclasses
import json
from collections import Counter
from itertools import pairwise

import jax
import numpy as np
import pytest
from random_models import random_model

from star_jax import experiment
from star_jax.acquisition import pool_scoring
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    FormatConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ModelConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.models.checkpoint_hf import save_model
from star_jax.models.folders import load_tokenizer
from star_jax.models.transformer import TransformerConfig
from star_jax.runtime.progress import Progress
from star_jax.training import trainer

MOST_PROGRAMS = 12
PROGRAMS = {
    function.__name__: function
    for function in (
        pool_scoring._answer,
        pool_scoring._score_proposed,
        pool_scoring._score_candidates,
        trainer.train_step,
    )
}
"""Everything that runs the model."""

ANSWERS = ("1", "2 3 4 5", "6 7 8 9 0 1 2 3 4")
CONFIG = ExperimentConfig(
    strategies=("star", "random"),
    lora=LoraConfig(rank=2, alpha=8, dropout=0.1, targets=("q_proj", "down_proj")),
    training=TrainingConfig(learning_rate=2e-2, epochs=2, batch_size=4),
    scoring=ScoringConfig(mc_samples=2, batch_size=6),
    generation=GenerationConfig(batch_size=8),
    loop=LoopConfig(initial_labels=9, labels_per_round=6, rounds=4),
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A Llama of one narrow layer and random weights, with the tokenizer that ships with the package."""
    folder = tmp_path_factory.mktemp("compiled") / "model"
    tokenizer = load_tokenizer("embedded:skills")
    shape = TransformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
    )
    save_model(random_model(np.random.default_rng(0), shape), folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path, rng, count, closed):
    """Prompts of 4 to 70 digits with responses of 1 to 29, or one of the answers: 5 to 100 tokens with the end."""
    rows = []
    for number in range(count):
        prompt = " ".join(map(str, rng.integers(0, 10, rng.integers(4, 71))))
        response = rng.choice(ANSWERS) if closed else " ".join(map(str, rng.integers(0, 10, rng.integers(1, 30))))
        rows.append({"id": f"{path.stem}-{number:03d}", "prompt": prompt, "response": response})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


class Compilations:
    """Names of what JAX compiled, in order, cut where `cut` was called."""

    def __init__(self):
        self.names, self.cuts = [], [0]

    def hear(self, event, duration_secs, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(fun_name)

    def cut(self):
        self.cuts.append(len(self.names))

    def parts(self):
        return [self.names[start:stop] for start, stop in pairwise(self.cuts)]


@pytest.fixture
def compilations():
    heard = Compilations()
    for function in PROGRAMS.values():
        function.clear_cache()  # Else what another test compiled is not counted.
    jax.monitoring.register_event_duration_secs_listener(heard.hear)
    yield heard
    jax.monitoring.unregister_event_duration_listener(heard.hear)


def settings(folder, tmp_path, rng, answers):
    closed = answers == "candidates"
    return dataclasses.replace(
        CONFIG,
        output_dir=str(tmp_path / "first"),
        model=ModelConfig(str(folder)),
        scoring=dataclasses.replace(CONFIG.scoring, answers=answers),
        data=DataConfig(
            "generic",
            train=write_rows(tmp_path / "train.jsonl", rng, 40, closed),
            test=write_rows(tmp_path / "test.jsonl", rng, 22, closed),
            max_prompt_tokens=70,
            max_response_tokens=30,
        ),
        format=FormatConfig("{{ prompt }} ", answers=ANSWERS if closed else ()),
    )


@pytest.mark.parametrize("answers", ["generated", "candidates", "reference"])
def test_a_run_compiles_few_programs_and_later_rounds_and_runs_compile_none(
    model_folder, tmp_path, rng, monkeypatch, compilations, answers
):
    """Star and random with everything there is: base scores, samples, training, test answers, likelihoods of gold."""
    write, prepare = experiment.save_state, experiment._problem
    seen = []

    def at_the_end_of_a_round(folder, state):
        write(folder, state)
        compilations.cut()

    def noted(*arguments):
        seen.append(prepare(*arguments))
        return seen[-1]

    monkeypatch.setattr(experiment, "save_state", at_the_end_of_a_round)
    monkeypatch.setattr(experiment, "_problem", noted)
    config = settings(model_folder, tmp_path, rng, answers)
    experiment.run_experiment(config, Progress("silent"))
    grown = {name: function._cache_size() for name, function in PROGRAMS.items()}
    print(answers, grown)
    assert sum(grown.values()) <= MOST_PROGRAMS

    # Each is compiled once a shape and kind of pass, and lengths like these need several shapes.
    problem, shapes = seen[0]
    kinds = {"generated": ("samples", "gold"), "candidates": ("gold",), "reference": ("base and gold", "samples")}
    assert 1 < grown["_answer"] <= len(shapes.prompts)
    assert len(kinds[answers]) < grown["_score_proposed"] <= len(kinds[answers]) * len(shapes.sequences)
    assert grown["train_step"] <= len(problem.shapes)
    of_pool = {(batch.tokens.shape, batch.slots) for batch in problem.pool.batches}
    assert grown["_score_candidates"] == (2 * len(of_pool) if answers == "candidates" else 0)
    assert {f"jit({name})": count for name, count in grown.items() if count} == {
        name: count for name, count in Counter(compilations.names).items() if name[4:-1] in PROGRAMS
    }

    # From the second query on, only a shape that is met for the first time, and an epoch's order of so many labels.
    later = {name for part in compilations.parts()[2 : CONFIG.loop.rounds] for name in part}
    assert later <= {"jit(_score_proposed)", "jit(train_step)", "jit(iota)", "jit(_shuffle)"}

    # Another run, stopped after its second round and taken up again, finds everything compiled.
    def stopped(folder, state):
        write(folder, state)
        if state.round == 2:
            raise KeyboardInterrupt

    compiled = len(compilations.names)
    config = dataclasses.replace(config, output_dir=str(tmp_path / "second"))
    monkeypatch.setattr(experiment, "save_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.run_experiment(config, Progress("silent"))
    monkeypatch.setattr(experiment, "save_state", write)
    experiment.run_experiment(config, Progress("silent"))
    # What a checkpoint is read with may be new, programs of a single operation; the model's are not.
    models = {"jit(_answer)", "jit(_score_proposed)", "jit(_score_candidates)", "jit(train_step)", "jit(_folded)"}
    assert not models & set(compilations.names[compiled:])
