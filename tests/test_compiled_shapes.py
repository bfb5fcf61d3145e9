"""An experiment compiles a handful of model programs, each once for a shape, whatever the lengths of its rows.

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

from star_jax.acquisition import branched_scoring, pool_scoring, pools
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import save_model
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
from star_jax.data.step_shapes import USUAL_SHAPES
from star_jax.experiment import rounds as one_round
from star_jax.experiment import runner as experiment
from star_jax.models.architecture import TransformerConfig
from star_jax.models.merged import _merged_layers
from star_jax.tracking.console import Progress
from star_jax.training import trainer

MOST_PROGRAMS = 12
PROGRAMS = {
    pool_scoring: ("_answer", "_score_proposed", "_score_candidates"),
    branched_scoring: ("_score_branched",),
    trainer: ("train_step",),
}
"""Everything that runs the model."""

NAMES = [name for names in PROGRAMS.values() for name in names]
MET_LATER = {"jit(_score_proposed)", "jit(train_step)"}
"""Whose shapes are those of responses that are written or bought in a round."""

ORDER = {"jit(iota)", "jit(_shuffle)"}
"""The order of an epoch, a program for every number of labels."""

ANSWERS = ("1", "2 3 4 5", "6 7 8 9 0 1 2 3 4")
KINDS = {"generated": 2, "candidates": 1, "reference": 2}
"""What is scored -> kinds of passes over prompts with a response: gold, and samples of what is no closed set."""

DTYPES = {"generated": "bfloat16", "candidates": "float32", "reference": "float32"}
SEEDS = {"generated": (0, 1), "candidates": (0,), "reference": (0,)}
"""Pools of two seeds are different draws from the file."""

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
    """Prompts of 4 to 70 digits with responses of 1 to 29, or one of the answers: 5 to 100 tokens with the end.

    Lengths are spread evenly, in random order: by chance they could be so alike that one shape holds them all.
    """
    prompts, responses = (rng.permutation(np.linspace(*ends, count).astype(int)) for ends in ((4, 70), (1, 29)))
    rows = []
    for number in range(count):
        prompt = digits(rng, prompts[number])
        response = rng.choice(ANSWERS) if closed else digits(rng, responses[number])
        rows.append({"id": f"{path.stem}-{number:03d}", "prompt": prompt, "response": response})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def digits(rng, count):
    return " ".join(map(str, rng.integers(0, 10, count)))


class Compilations:
    """What JAX compiled: all names in order, cut where `cut` was called, and what each model program was for."""

    def __init__(self):
        self.names, self.cuts, self.of_models = [], [0], []

    def hear(self, event, duration_secs, *, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(fun_name)

    def cut(self):
        self.cuts.append(len(self.names))

    def parts(self):
        return [self.names[start:stop] for start, stop in pairwise(self.cuts)]

    def watched(self, program):
        """The program; when a call compiles it, the shape of the tokens and the kind of pass are noted."""

        def call(*arguments, **options):
            compiled = program._cache_size()
            found = program(*arguments, **options)
            if program._cache_size() > compiled:
                leaves = [leaf for leaf in jax.tree.leaves(arguments) if leaf.ndim == 2 and leaf.dtype == np.int32]
                shapes = [leaf.shape for leaf in leaves]
                self.of_models.append((program.__name__, *shapes, options["capacity"], options.get("sampling")))
            return found

        return call


@pytest.fixture
def compilations(monkeypatch):
    heard = Compilations()
    for module, names in PROGRAMS.items():
        for name in names:
            program = getattr(module, name)
            program.clear_cache()  # Else what another test compiled is not counted.
            monkeypatch.setattr(module, name, heard.watched(program))
    jax.monitoring.register_event_duration_secs_listener(heard.hear)
    yield heard
    jax.monitoring.unregister_event_duration_listener(heard.hear)


def settings(folder, tmp_path, rng, answers):
    closed = answers == "candidates"
    return dataclasses.replace(
        CONFIG,
        output_dir=str(tmp_path / "first"),
        seeds=SEEDS[answers],
        model=ModelConfig(str(folder), dtype=DTYPES[answers]),
        scoring=dataclasses.replace(CONFIG.scoring, answers=answers),
        data=DataConfig(
            "generic",
            train=write_rows(tmp_path / "train.jsonl", rng, 44, closed),
            test=write_rows(tmp_path / "test.jsonl", rng, 22, closed),
            pool_limit=36,
            max_prompt_tokens=70,
            max_response_tokens=30,
        ),
        format=FormatConfig("{{ prompt }} ", answers=ANSWERS if closed else ()),
    )


@pytest.mark.parametrize("answers", KINDS)
def test_a_run_compiles_few_programs_and_later_rounds_and_runs_compile_none(
    model_folder, tmp_path, rng, monkeypatch, compilations, answers
):
    """Star and random with everything there is: base scores, samples, training, test answers, likelihoods of gold."""
    write = one_round.save_state

    def at_the_end_of_a_round(folder, state):
        write(folder, state)
        compilations.cut()

    monkeypatch.setattr(one_round, "save_state", at_the_end_of_a_round)
    config = settings(model_folder, tmp_path, rng, answers)
    experiment.run_experiment(config, Progress("silent"))
    print(answers, *compilations.of_models, sep="\n")
    assert len(compilations.of_models) <= MOST_PROGRAMS

    # Each is compiled once a shape and kind of pass, and lengths like these need several shapes.
    assert len(set(compilations.of_models)) == len(compilations.of_models)
    grown = Counter(name for name, *_ in compilations.of_models)
    assert 1 < grown["_answer"] <= pools.PROMPT_SHAPES
    assert KINDS[answers] < grown["_score_proposed"] <= KINDS[answers] * (pools.SEQUENCE_SHAPES + 1)
    assert 1 < grown["train_step"] <= USUAL_SHAPES + 1
    of_candidates = [shape for name, *shape, _ in compilations.of_models if name == "_score_branched"]
    assert (len(of_candidates) > 2) == (answers == "candidates")
    assert set(Counter(map(str, of_candidates)).values()) <= {2}  # the base model, and samples
    assert {f"jit({name})": count for name, count in grown.items()} == {
        name: count for name, count in Counter(compilations.names).items() if name[4:-1] in NAMES
    }

    # Later: only a shape that is met for the first time, and the order of an epoch of so many labels. The first two
    # rounds of the first run compile everything else, the first query of another strategy how that one chooses.
    rounds = config.loop.rounds
    parts = compilations.parts()
    assert len(parts) == len(config.seeds) * len(config.strategies) * rounds
    for number, part in enumerate(parts):
        run, this_round = divmod(number, rounds)
        if run == 0 and this_round < 2:
            continue
        chooses = {"jit(select)"} if this_round == 1 and run < len(config.strategies) else set()
        assert set(part) <= MET_LATER | ORDER | chooses, (run, this_round)

    # Another experiment, stopped after the second round and taken up again, finds everything compiled.
    def stopped(folder, state):
        write(folder, state)
        if state.round == 2:
            raise KeyboardInterrupt

    compiled = len(compilations.names)
    config = dataclasses.replace(config, output_dir=str(tmp_path / "second"), strategies=("star",))
    monkeypatch.setattr(one_round, "save_state", stopped)
    with pytest.raises(KeyboardInterrupt):
        experiment.run_experiment(config, Progress("silent"))
    monkeypatch.setattr(one_round, "save_state", write)
    experiment.run_experiment(config, Progress("silent"))
    # What a checkpoint is read with may be new, programs of a single operation; the model's are not.
    models = {f"jit({_merged_layers.__name__})", *(f"jit({name})" for name in NAMES)}
    assert not models & set(compilations.names[compiled:])
