"""The base model's scores on disk: what names a file, and what happens to one that is damaged."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from star_jax.acquisition.pool_scoring import GeneratedPool, ProposedPool
from star_jax.config import DataConfig, ExperimentConfig, LoopConfig, ModelConfig, ScoringConfig
from star_jax.data.batching import Batch
from star_jax.models.folders import resolve_folder, weight_files
from star_jax.runtime.base_scores import BaseScores, scores_origin


def make_pool(rng, batches=2):
    def batch():
        lengths = rng.integers(1, 9, 4).astype(np.int32)
        tokens = rng.integers(0, 50, (4, 9)).astype(np.int32)
        return Batch(tokens, lengths, lengths, np.arange(4, dtype=np.int32), np.ones(4, bool), 3)

    return GeneratedPool(tuple(batch() for _ in range(batches)), 4 * batches, 3, (1, 2))


@pytest.fixture
def store(tmp_path):
    said = []
    scores = BaseScores(tmp_path / "base-scores", {"model": "one"}, said.append)
    scores.said = said
    return scores


class Model:
    """Gives random scores and counts how often it is asked."""

    def __init__(self, rng, size):
        self.calls = 0
        self._scores = {
            "token_entropy": rng.normal(size=size).astype(np.float32),
            "response_tokens": rng.integers(1, 9, size).astype(np.int32),
        }

    def __call__(self):
        self.calls += 1
        return self._scores


def test_all_measures_are_computed_once_and_read_bit_for_bit(rng, store, tmp_path):
    pool = make_pool(rng)
    model = Model(rng, pool.size)
    first = store.measures(pool, model)
    later = BaseScores(tmp_path / "base-scores", {"model": "one"}, print).measures(pool, model)
    assert model.calls == 1
    for measures in (first, later):
        assert measures.keys() == model().keys()
        for name, values in model().items():
            np.testing.assert_array_equal(measures[name], values)
            assert measures[name].dtype == values.dtype


def test_everything_about_the_examples_is_in_the_name(rng, store):
    pool = make_pool(rng)
    same = pool._replace(
        batches=tuple(dataclasses.replace(batch, tokens=batch.tokens.copy()) for batch in pool.batches)
    )
    assert store.name_of(same) == store.name_of(pool)
    first, *rest = pool.batches
    tokens = first.tokens.copy()
    tokens[rng.integers(4), rng.integers(9)] += 1
    others = [
        pool._replace(batches=(dataclasses.replace(first, tokens=tokens), *rest)),
        pool._replace(batches=(dataclasses.replace(first, prompt_lengths=first.prompt_lengths + 1), *rest)),
        pool._replace(batches=(dataclasses.replace(first, tokens=first.tokens.astype(np.int64)), *rest)),
        pool._replace(batches=tuple(reversed(pool.batches))),
        pool._replace(batches=pool.batches[:1]),
        pool._replace(width=4),
        pool._replace(end_ids=(1,)),
        pool._replace(end_ids=(12,)),
        ProposedPool(pool.batches, pool.size),
    ]
    assert len({store.name_of(one) for one in [pool, *others]}) == len(others) + 1
    with pytest.raises(TypeError, match="no part of"):
        store.name_of({1: 2})


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve_folder("embedded:skills"), folder)
    return ExperimentConfig(model=ModelConfig(str(folder)))


def test_the_origin_changes_with_model_type_limits_and_adapter(config, tmp_path):
    def model(**changes):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))

    before = scores_origin(config)
    (weights,) = weight_files(resolve_folder(config.model.path))
    others = [
        model(dtype="bfloat16"),
        model(quantization="int8"),
        model(ignored_fields=("x",)),
        model(adapter=str(config.model.path)),
        dataclasses.replace(config, data=DataConfig(max_response_tokens=99)),
        dataclasses.replace(config, scoring=ScoringConfig(answers="candidates")),
    ]
    origins = [scores_origin(other) for other in others]
    stamp = weights.stat().st_mtime_ns
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp, stamp))
    origins.append(scores_origin(config))  # other weights of the same age
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp + 1, stamp + 1))
    origins.append(scores_origin(config))  # written again: what is in the middle of a large file is not read
    os.utime(weights, ns=(stamp, stamp))
    assert scores_origin(config) == before
    assert all(origin != before for origin in origins)


def test_what_does_not_matter_does_not_change_it(config, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(config.model.path, moved)  # with the time of the last change
    other = dataclasses.replace(
        config,
        output_dir="elsewhere",
        strategies=("pe",),
        seeds=(3, 4),
        model=ModelConfig(str(moved)),
        scoring=ScoringConfig(mc_samples=7, dropout="per_token"),
        loop=LoopConfig(rounds=2),
    )
    assert scores_origin(other) == scores_origin(config)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_computed_again_and_said(rng, store, tmp_path, kept):
    pool = make_pool(rng)
    model = Model(rng, pool.size)
    store.measures(pool, model)
    (file,) = (tmp_path / "base-scores").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    again = store.measures(pool, model)
    assert model.calls == 2
    np.testing.assert_array_equal(again["token_entropy"], model()["token_entropy"])
    assert len(store.said) == 1
    assert "is damaged" in store.said[0]
    assert file.read_bytes() == content


def test_scores_of_another_number_of_examples_are_damage(rng, store, tmp_path):
    pool = make_pool(rng)
    model = Model(rng, pool.size)
    np.savez(tmp_path / "other.npz", token_entropy=np.zeros(pool.size + 1, np.float32))
    (tmp_path / "base-scores").mkdir()
    (tmp_path / "other.npz").rename(tmp_path / "base-scores" / f"{store.name_of(pool)}.npz")
    store.measures(pool, model)
    assert model.calls == 1
    assert len(store.said) == 1
