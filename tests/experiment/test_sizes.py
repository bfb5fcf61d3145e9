"""Sizes that nothing can hold are refused by arithmetic, and those that can be held are not."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from random_models import random_model

from star_jax.checkpoints.hub import resolve_folder
from star_jax.cli import run, score
from star_jax.cli.guard import guarded_main
from star_jax.config import ExperimentConfig, LoraConfig
from star_jax.data.batching import Shape
from star_jax.data.bucketing import Shapes
from star_jax.errors import ConfigError
from star_jax.experiment import setup, sizes
from star_jax.models.lora import init_adapter


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_as_large_as_is_said(tiny_config, tied):
    """But for the norms, which are left out."""
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied)
    model = random_model(np.random.default_rng(0), config)
    norms = sum(leaf.nbytes for path, leaf in jax.tree.leaves_with_path(model.params) if "scale" in str(path))
    assert sizes.weight_bytes(config) == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params)) - norms
    half = dataclasses.replace(config, dtype="bfloat16")
    assert 2 * sizes.weight_bytes(half) == sizes.weight_bytes(config)
    assert sizes.weight_bytes(half, "nf4") < sizes.weight_bytes(half, "int8") < sizes.weight_bytes(half)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "layers.1.mlp.up_proj")])
def test_an_adapter_is_as_large_as_is_said(tiny_config, targets):
    model = random_model(np.random.default_rng(0), tiny_config)
    adapter = init_adapter(jax.random.key(0), model.params, LoraConfig(rank=3, targets=targets))
    expected = sum(leaf.nbytes for leaf in jax.tree.leaves(adapter.weights))
    assert sizes.adapter_bytes(tiny_config, 3, targets) == expected


def test_only_what_is_larger_than_the_room_is_refused():
    demands = [
        sizes.Demand("lora.rank", 64, "an adapter", 10**9),
        sizes.Demand("model.path", "m", "its weights", 3 * 10**9),
    ]
    sizes.refuse_what_does_not_fit(demands, 3 * 10**9)
    with pytest.raises(ConfigError) as refused:
        sizes.refuse_what_does_not_fit(demands, 2 * 10**9)
    assert str(refused.value) == (
        "model.path is m: its weights would take 3.0 GB at the least, and there are 2.0 GB of memory; "
        "choose a smaller one"
    )
    with pytest.raises(ConfigError, match="far too many GB at the least"):
        sizes.refuse_what_does_not_fit([sizes.Demand("lora.rank", 9, "an adapter", 10**400)], 1)


def test_batches_are_as_large_as_their_shapes(tiny_config):
    shapes = Shapes((Shape(4, 10, 30), Shape(2, 50, 90)), (Shape(4, 60, 240),))
    config = ExperimentConfig()
    written, scored = sizes.batch_demands(config, tiny_config, shapes)
    response, width = config.data.max_response_tokens, 2 * 2 * 8 * 4  # key and value of two heads of 8 float32 each
    assert written.size == max(4 * (10 + response), 2 * (50 + response)) * 2 * width
    assert scored.size == 240 * 24 * 4


HUGE = [
    ("--lora.rank", 10**7, "lora.rank is 10000000: an adapter in training would take"),
    ("--lora.rank", 10**400, "lora.rank is of more than 20 digits; it must be less than"),
    ("--training.batch-size", 10**9, "training.batch_size is 1000000000: a training step would take"),
    ("--training.replay-rows", 10**9, "training.replay_rows is 1000000000: a training step would take"),
    ("--training.epochs", 10**9, "training.epochs is 1000000000; it must be at most 10000"),
    ("--scoring.mc-samples", 10**9, "scoring.mc_samples is 1000000000; it must be at most 10000"),
    ("--evaluation.bins", 10**9, "evaluation.bins is 1000000000; it must be at most 10000"),
    ("--data.pool-size", 10**9, "data.pool_size is 1000000000: the pool would take"),
    ("--data.max-response-tokens", 10**9, "data.max_response_tokens is 1000000256 and the model reads"),
    ("--loop.rounds", 10**9, "loop asks for"),
    ("--loop.initial-labels", 10**12, "loop.initial_labels is 1000000000000; it must be less than 2147483648"),
    ("--generation.batch-size", 10**12, "generation.batch_size is 1000000000000; it must be less than"),
]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    HUGE,
    ids=[f"{flag[2:]}={value:.0e}" if value < 10**300 else flag for flag, value, _ in HUGE],
)
def test_a_setting_that_nothing_can_hold_is_refused_before_the_model_is_loaded(
    tmp_path, capfd, monkeypatch, flag, value, said
):
    monkeypatch.setattr(setup, "load_folder", lambda *arguments, **options: pytest.fail("the model was loaded"))
    monkeypatch.setattr(setup, "memory_bytes", lambda: 64 * 10**9)
    flags = ["--output-dir", str(tmp_path / "out"), "--data.test-limit", "20", flag, str(value)]
    if "pool-size" not in flag:
        flags += ["--data.pool-size", "600"]
    if "max-response" in flag:
        said = f"data.max_prompt_tokens + {said.split(' is')[0]} is"
    assert guarded_main(run.main, flags) == 2
    error = capfd.readouterr().err
    assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_hidden_layers": 10**9},
            "has 1000000000 as 'num_hidden_layers'; it must be a whole number from 1 to 10,000",
        ),
        ({"hidden_size": 10**400}, "has a number of about 401 digits as 'hidden_size'"),
        ({"vocab_size": "many"}, "has 'many' as 'vocab_size'; it must be a whole number"),
        ({"intermediate_size": -1}, "has -1 as 'intermediate_size'"),
        ({"model_type": []}, "has [] as 'model_type'; it must be a text"),
        ({"rope_parameters": "linear"}, "has 'linear' as 'rope_parameters'; it must be an object or null"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}}, "as 'rope_theta'; it must be a number"),
        ({"rms_norm_eps": None}, "has null as 'rms_norm_eps'; it must be a positive number"),
        ({"hidden_size": 2**22, "intermediate_size": 2**24, "num_hidden_layers": 10_000}, "its weights would take"),
    ],
)
def test_a_model_of_impossible_sizes_is_refused_by_every_command(tmp_path, capfd, monkeypatch, changes, said):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resolve_folder("embedded:skills"), "model")
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(raw | changes))
    (tmp_path / "pool.jsonl").write_text('{"question": "max 3 9 ="}\n')
    for command, flags in (
        (run.main, ["--model.path", "model", "--training.replay", "none", "--training.replay-rows", "0"]),
        (score.main, ["--model", "model", "--data", "pool.jsonl", "--task", "skills"]),
    ):
        assert guarded_main(command, flags) == 2
        error = capfd.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "pool.jsonl"]


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--max-response-tokens", 10**9, "--max-response-tokens is 1000000000: keys and values of one response"),
        ("--mc-samples", 10**9, "--mc-samples is 1000000000; it must be at most 10000"),
        ("--batch-size", 10**12, "--batch-size is 1000000000000; it must be at most 2147483647"),
    ],
)
def test_scores_that_nothing_can_hold_are_refused(tmp_path, capfd, flag, value, said):
    (tmp_path / "pool.jsonl").write_text('{"question": "max 3 9 ="}\n')
    flags = ["--model", "embedded:skills", "--data", str(tmp_path / "pool.jsonl"), "--task", "skills", "--adapter", "a"]
    assert guarded_main(score.main, [*flags, flag, str(value)]) == 2
    assert said in capfd.readouterr().err
