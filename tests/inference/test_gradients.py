"""Gradient sketches against slopes of a float64 model in numpy, taken by differences along each bucket's direction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.data.batching import Shape
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference import gradients
from star_jax.inference.gradients import SKETCH_SEED, count_sketch, gradient_sketches
from star_jax.models.lora import Adapter
from star_jax.parallel.mesh import data_mesh
from star_jax.runs.partial_scores import PartialScores

PROMPTS, RESPONSES = (5, 1, 4, 2, 6, 3, 1), (2, 3, 1, 3, 2, 4, 1)
SHAPES = (Shape(2, 5, 10), Shape(3, 8, 24))
WIDTH = 3


@pytest.fixture
def rows(rng, small_model):
    lengths = [(prompt, prompt + response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    vocab = small_model.config.vocab_size
    return [TokenizedExample(rng.integers(0, vocab, whole).astype(np.int32), prompt) for prompt, whole in lengths]


@pytest.fixture(scope="module")
def places(small_adapter):
    """What the sketch does with each entry of a factor: its sign and its bucket."""
    leaves, tree = jax.tree.flatten(small_adapter.weights)
    keys = jax.random.split(jax.random.key(SKETCH_SEED), len(leaves))
    bits = [np.asarray(jax.random.bits(key, leaf.shape, np.uint32)) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, bits)


def nll(numpy_logits, model, adapter, row):
    logits = numpy_logits(model, adapter, row.tokens)[row.prompt_length - 1 : -1]
    chosen = row.tokens[row.prompt_length :]
    top = logits.max(axis=-1)
    logs = np.log(np.exp(logits - top[:, None]).sum(axis=-1)) + top
    return (logs - logits[np.arange(len(chosen)), chosen]).sum()


def test_each_entry_is_the_slope_along_its_signed_bucket(small_model, small_adapter, numpy_logits, rows, places):
    got = np.asarray(gradient_sketches(small_model, small_adapter, rows, SHAPES, WIDTH))
    assert got.shape == (len(rows), WIDTH)
    assert got.dtype == np.float32
    step = 1e-5

    def moved(bucket, by):
        def move(value, bits):
            direction = np.where((bits >> 1) % WIDTH == bucket, np.where(bits & 1, 1.0, -1.0), 0.0)
            return np.asarray(value, np.float64) + by * direction

        return Adapter(jax.tree.map(move, small_adapter.weights, places), small_adapter.scale)

    for place in (0, 3, 6):
        for bucket in range(WIDTH):
            up, down = (nll(numpy_logits, small_model, moved(bucket, by), rows[place]) for by in (step, -step))
            np.testing.assert_allclose(got[place, bucket], (up - down) / (2 * step), rtol=2e-3, atol=2e-3)


def test_neither_batch_nor_padding_nor_order_matters(small_model, small_adapter, rows):
    want = np.asarray(gradient_sketches(small_model, small_adapter, rows, SHAPES, WIDTH))
    close = {"rtol": 1e-4, "atol": 1e-5 * np.abs(want).max()}
    for shapes in ([Shape(7, 8, 56)], [Shape(1, 13, 13)], [Shape(4, 9, 36), Shape(4, 5, 16)]):
        np.testing.assert_allclose(gradient_sketches(small_model, small_adapter, rows, shapes, WIDTH), want, **close)
    order = np.random.default_rng(0).permutation(len(rows))
    moved = gradient_sketches(small_model, small_adapter, [rows[place] for place in order], SHAPES, WIDTH)
    np.testing.assert_allclose(moved, want[order], **close)


def test_without_b_only_b_has_a_gradient(small_model, small_adapter, rows):
    """At the start of a training: W x + s B A x does not depend on A where B is 0."""
    no_b = {name: {"a": one["a"], "b": 0 * one["b"]} for name, one in small_adapter.weights["layers"].items()}
    other_a = {name: {"a": one["a"], "b": one["b"]} for name, one in no_b.items()}
    start = Adapter({"layers": other_a}, small_adapter.scale)
    got = np.asarray(gradient_sketches(small_model, start, rows, SHAPES, 64))
    assert (np.linalg.norm(got, axis=1) > 0).all()
    silent = Adapter(jax.tree.map(jnp.zeros_like, small_adapter.weights), small_adapter.scale)
    assert not np.asarray(gradient_sketches(small_model, silent, rows, SHAPES, 64)).any()


def test_a_sketch_keeps_inner_products_on_average(rng):
    """Variance of an entry's product is at most (|x|²|y|² + (x·y)²) / W (Charikar et al. 2002)."""
    size, width, draws = 40, 8, 400
    x, y = (jnp.asarray(rng.normal(size=size), jnp.float32) for _ in range(2))

    def products(bits):
        return count_sketch([x], [bits], width) @ count_sketch([y], [bits], width)

    found = np.asarray(jax.vmap(products)(jax.random.bits(jax.random.key(3), (draws, size), jnp.uint32)))
    exact = float(x @ y)
    spread = np.sqrt((float(x @ x) * float(y @ y) + exact**2) / width)
    assert abs(found.mean() - exact) < 6 * spread / np.sqrt(draws)
    assert found.std() < 2 * spread


def test_a_wide_sketch_is_the_gradient_in_another_order(rng):
    """Where no two entries share a sum."""
    values = jnp.asarray(rng.normal(size=5), jnp.float32)
    bits = jnp.asarray([2 * 3 + 1, 2 * 0, 2 * 7 + 1, 2 * 9, 2 * 1 + 1], jnp.uint32)
    got = np.asarray(count_sketch({"x": values}, {"x": bits}, 8))
    np.testing.assert_allclose(got[[3, 0, 7]], [values[0], -values[1], values[2]], rtol=1e-6)
    np.testing.assert_allclose(got[1], values[4] - values[3], rtol=1e-5)  # 9 mod 8 is 1
    assert np.count_nonzero(got) == 4


def test_what_an_interrupted_pass_has_kept_is_not_computed_again(small_model, small_adapter, rows, tmp_path, counted):
    partial, calls = PartialScores(tmp_path / "p", "one"), counted(gradients, "_sketch")
    of_rows = (small_model, small_adapter, rows, SHAPES, WIDTH)
    first = gradient_sketches(*of_rows, log=partial.log("sketched"))
    made = len(calls)
    again = gradient_sketches(*of_rows, log=partial.log("sketched"))
    partial.close()
    assert made > 1
    assert len(calls) == made + 1  # the last batch, which tells the structure of the results
    np.testing.assert_array_equal(first, again)


def test_progress_counts_every_example_once(small_model, small_adapter, rows):
    seen = []
    gradient_sketches(small_model, small_adapter, rows, SHAPES, WIDTH, seen.append)
    assert sum(seen) == len(rows)
    assert max(seen) <= max(shape.rows for shape in SHAPES) * data_mesh().size
