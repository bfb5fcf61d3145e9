"""Embeddings of prompts against a plain loop over them: pooling, order, padding, adapters, and the projection."""

import itertools

import jax
import numpy as np
import pytest

from star_jax.data.batching import Shape
from star_jax.inference import features
from star_jax.inference.features import PROJECTION_SEED, Readout
from star_jax.models.lora import with_adapter
from star_jax.parallel.mesh import data_mesh
from star_jax.runs.partial_scores import PartialScores

LENGTHS = (5, 1, 9, 3, 9, 2, 7, 4, 6, 1, 8)
SHAPES = (Shape(2, 4, 8), Shape(3, 9, 27))
POOLINGS = ("mean", "weighted", "last")


@pytest.fixture
def prompts(rng, small_model):
    """Of one to nine tokens, in no order; of two short ones, one is the beginning of the other."""
    drawn = [rng.integers(0, small_model.config.vocab_size, length).astype(np.int32) for length in LENGTHS]
    drawn[5] = drawn[3][:2]
    return drawn


def embed_prompts(model, adapter, prompts, shapes, pooling="mean", projection=None, on_batch=lambda rows: None):
    """By one readout."""
    (found,) = features.embed_prompts(model, adapter, prompts, shapes, [Readout(pooling, projection)], on_batch)
    return found


@jax.jit
def states(model, adapter, tokens):
    """Hidden states of one prompt, behind the last norm, `T×D`."""
    hidden, _ = model.decoder.apply(with_adapter(model.params, adapter), tokens[None], None)
    return hidden[0]


def plain(model, adapter, prompts, pooling):
    """One prompt at a time, none of them padded."""
    rows = [np.asarray(states(model, adapter, tokens), np.float64) for tokens in prompts]
    pooled = {
        "mean": lambda row: row.mean(axis=0),
        "weighted": lambda row: np.average(row, axis=0, weights=np.arange(1, len(row) + 1)),
        "last": lambda row: row[-1],
    }
    return np.stack([pooled[pooling](row) for row in rows])


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_those_of_each_prompt_alone(small_model, small_adapter, prompts, pooling, adapted):
    adapter = small_adapter if adapted else None
    got = embed_prompts(small_model, adapter, prompts, SHAPES, pooling)
    assert got.shape == (len(prompts), small_model.config.hidden_size)
    assert got.dtype == np.float32
    assert_close(got, plain(small_model, adapter, prompts, pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_neither_batch_nor_padding_matters(small_model, small_adapter, prompts, pooling):
    want = np.asarray(embed_prompts(small_model, small_adapter, prompts, SHAPES, pooling))
    for shapes in ([Shape(11, 9, 99)], [Shape(1, 12, 12)], [Shape(4, 23, 92), Shape(4, 5, 16)]):
        assert_close(embed_prompts(small_model, small_adapter, prompts, shapes, pooling), want)
    order = np.random.default_rng(0).permutation(len(prompts))
    moved = embed_prompts(small_model, small_adapter, [prompts[place] for place in order], SHAPES, pooling)
    assert_close(moved, want[order])
    few = embed_prompts(small_model, small_adapter, prompts[:3], SHAPES, pooling)
    assert_close(few, want[:3])


def test_of_one_token_all_poolings_are_the_same(small_model, prompts):
    found = [np.asarray(embed_prompts(small_model, None, prompts, SHAPES, pooling)) for pooling in POOLINGS]
    alone = [place for place, tokens in enumerate(prompts) if len(tokens) == 1]
    assert len(alone) == 2
    others = np.setdiff1d(np.arange(len(prompts)), alone)
    for one, other in itertools.combinations(found, 2):
        np.testing.assert_allclose(one[alone], other[alone], rtol=1e-6)
        assert (np.abs(one[others] - other[others]).max(axis=1) > 1e-3).all()


def test_base_and_adapted_model_embed_differently(small_model, small_adapter, prompts):
    base, full = (np.asarray(embed_prompts(small_model, one, prompts, SHAPES)) for one in (None, small_adapter))
    assert (np.abs(base - full).max(axis=1) > 1e-3).all()
    again = embed_prompts(small_model, None, prompts, SHAPES)
    np.testing.assert_array_equal(base, again)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_projection_is_one_random_matrix_that_stays_the_same(small_model, small_adapter, prompts, pooling):
    """For every model, pooling and call."""
    width, narrow = small_model.config.hidden_size, 7
    matrix = np.asarray(jax.random.normal(jax.random.key(PROJECTION_SEED), (width, narrow)), np.float64)
    for adapter in (None, small_adapter):
        whole = np.asarray(embed_prompts(small_model, adapter, prompts, SHAPES, pooling), np.float64)
        got = embed_prompts(small_model, adapter, prompts, SHAPES, pooling, projection=narrow)
        assert got.shape == (len(prompts), narrow)
        want = whole @ matrix / np.sqrt(narrow)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
        again = embed_prompts(small_model, adapter, prompts, SHAPES, pooling, projection=narrow)
        np.testing.assert_array_equal(got, again)


def test_a_projection_keeps_distances_roughly(small_model, prompts):
    """Squared distances are scattered with standard deviation √(2/P): twelve of them either way at P = 3000."""
    whole, narrow = (
        np.asarray(embed_prompts(small_model, None, prompts, SHAPES, projection=width)) for width in (None, 3000)
    )
    first, second = np.triu_indices(len(prompts), 1)
    before, after = (((rows[first] - rows[second]) ** 2).sum(axis=1) for rows in (whole, narrow))
    apart = before > 1e-6
    assert apart.sum() > 50
    np.testing.assert_allclose(after[apart] / before[apart], 1, atol=12 * np.sqrt(2 / 3000))


def test_one_pass_gives_all_readouts(small_model, small_adapter, prompts):
    readouts = [Readout(), Readout("last", 3), Readout("mean", 5), Readout("last"), Readout("mean", 3)]
    seen = []
    found = features.embed_prompts(small_model, small_adapter, prompts, SHAPES, readouts, seen.append)
    assert sum(seen) == len(prompts)
    for got, readout in zip(found, readouts, strict=True):
        assert_close(got, np.asarray(embed_prompts(small_model, small_adapter, prompts, SHAPES, *readout)))


def test_what_an_interrupted_pass_has_kept_is_not_computed_again(small_model, prompts, tmp_path, counted):
    partial, calls = PartialScores(tmp_path / "p", "one"), counted(features, "_embed")
    first = features.embed_prompts(small_model, None, prompts, SHAPES, [Readout()], log=partial.log("embedded"))
    made = len(calls)
    again = features.embed_prompts(small_model, None, prompts, SHAPES, [Readout()], log=partial.log("embedded"))
    partial.close()
    assert made > 1
    assert len(calls) == made + 1  # the last batch, which tells the structure of the results
    np.testing.assert_array_equal(*first, *again)


def test_progress_counts_every_prompt_once(small_model, prompts):
    seen = []
    embed_prompts(small_model, None, prompts, SHAPES, on_batch=seen.append)
    assert sum(seen) == len(prompts)
    assert len(seen) > 1
    assert max(seen) <= max(shape.rows for shape in SHAPES) * data_mesh().size
