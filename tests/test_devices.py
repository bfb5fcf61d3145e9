"""A run on eight devices is the run on one: the same picks and answers, scores and adapters but for rounding.

Belongs here: what needs processes with several devices. They are virtual ones of the CPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from device_child import POOL, TARGETS
from random_models import random_adapter, skills_model
from safetensors.numpy import load_file

from star_jax.acquisition.uncertainty import MEASURES
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import save_model
from star_jax.checkpoints.peft import save_adapter

COUNTS = (1, 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the two processes wrote. Programs are compiled as those of all tests: what differs is where rows lie."""
    folder = tmp_path_factory.mktemp("devices")
    tokenizer = load_tokenizer("embedded:skills")
    model = skills_model()
    save_model(model, folder / "model")
    tokenizer.save_pretrained(folder / "model")
    adapter = random_adapter(np.random.default_rng(0), model.config, targets=TARGETS, rank=2, scale=0.2)
    save_adapter(adapter, folder / "adapter", base_model="embedded:skills", dropout=0.1)
    told = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    for count in COUNTS:
        command = [sys.executable, str(Path(__file__).with_name("device_child.py")), str(folder)]
        done = subprocess.run(
            command, env=told | {"JAX_NUM_CPU_DEVICES": str(count)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    return [folder / str(count) for count in COUNTS]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_rows_close(one, other):
    """Equal but for numbers, which may differ by rounding."""
    assert [row.keys() for row in one] == [row.keys() for row in other]
    for left, right in zip(one, other, strict=True):
        for name, value in left.items():
            if isinstance(value, float):
                assert abs(value - right[name]) <= 5e-6 * (1 + abs(value)), (name, left, right)
            else:
                assert value == right[name], (name, left, right)


def test_picks_scores_and_predictions_of_a_run_are_the_same(folders):
    one, eight = (folder / "star" / "seed-0" / "rounds" for folder in folders)
    rounds = sorted(path.name for path in one.iterdir())
    assert rounds == ["000", "001", "002"]
    for number in rounds:
        ours, theirs = (lines(place / number / "queried.jsonl") for place in (one, eight))
        assert [row["id"] for row in ours] == [row["id"] for row in theirs]
        assert_rows_close(ours, theirs)
        assert_rows_close(*(lines(place / number / "predictions.jsonl") for place in (one, eight)))
    assert all(row["full_uncertainty"] is not None for row in ours)


def test_adapters_differ_by_rounding(folders):
    one, eight = (load_file(folder / "star" / "seed-0" / "adapter" / "adapter_model.safetensors") for folder in folders)
    assert one.keys() == eight.keys()
    print(max(float(np.abs(tensor - eight[name]).max()) for name, tensor in one.items()))
    for name, tensor in one.items():
        np.testing.assert_allclose(eight[name], tensor, rtol=0, atol=5e-6, err_msg=name)
    assert max(float(np.abs(tensor).max()) for name, tensor in one.items() if "lora_B" in name) > 1e-2


@pytest.mark.parametrize("kind", ["generated", "candidates", "proposed"])
@pytest.mark.parametrize("sampled", [False, True])
def test_every_measure_of_a_pool_is_the_same(folders, kind, sampled):
    one, eight = (np.load(folder / "scores.npz") for folder in folders)
    for name in MEASURES:
        ours, theirs = (scores[f"{kind} {sampled} {name}"] for scores in (one, eight))
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(theirs, ours, rtol=5e-6, atol=5e-6, err_msg=name)
    if kind != "proposed":
        np.testing.assert_array_equal(*(scores[f"{kind} {sampled} responses"] for scores in (one, eight)))
    entropies = one[f"{kind} {sampled} token_entropy"]
    assert entropies.size == POOL or (kind == "candidates" and entropies.size % 8)
    assert np.unique(entropies).size > entropies.size / 2
