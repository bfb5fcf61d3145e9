"""Answers that are batched continuously are those of one batch after another, and are kept as they come."""

import jax
import numpy as np
import pytest
from random_models import TINY, random_model

from star_jax.acquisition import long_answers
from star_jax.acquisition.pool_sampling import sample_pool
from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import GeneratedPool
from star_jax.data.batching import Shape
from star_jax.inference import continuous
from star_jax.inference.sampling import Decoding

SIZE, WIDTH, ENDS = 11, 6, (1, 2)


@pytest.fixture
def pool(rng):
    prompts = [rng.integers(2, 11, 1 + number % 4).astype(np.int32) for number in range(SIZE)]
    return GeneratedPool(prompts, (Shape(3, 4, 12),), WIDTH, ENDS, ())


@pytest.fixture
def model(rng):
    return random_model(rng, TINY)


@pytest.fixture
def continuously(monkeypatch):
    def switch():
        monkeypatch.setattr(long_answers, "LONG_ANSWER", WIDTH)
        monkeypatch.setattr(continuous, "STEPS", 2)

    return switch


class Log:
    """Keeps results in memory, and breaks off where it is told to."""

    def __init__(self, kept, most):
        self.kept, self.most, self.taken = kept, most, 0

    def take(self, batch):
        if self.taken < len(self.kept):
            index, leaves = self.kept[self.taken]
            if index == batch.index.tolist():
                self.taken += 1
                return leaves
        return None

    def add(self, batch, leaves):
        if len(self.kept) == self.most:
            raise KeyboardInterrupt
        self.kept.append((batch.index.tolist(), leaves))


def assert_same(one, other):
    assert one.measures.keys() == other.measures.keys()
    for name, values in other.measures.items():
        np.testing.assert_allclose(one.measures[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(one.responses, other.responses)
    np.testing.assert_array_equal(one.lengths, other.lengths)


@pytest.mark.parametrize("drawn", [False, True])
def test_answers_and_measures_are_those_of_one_batch_after_another(pool, model, continuously, drawn):
    def run(log=None, on_batch=lambda count: None):
        if drawn:
            key, decoding = jax.random.key(1), Decoding(2, 1.3, 0.9)
            return sample_pool(model, None, pool, key=key, decoding=decoding, on_batch=on_batch, logs=lambda name: log)
        return score_pool(model, None, pool, on_batch=on_batch, logs=lambda name: log)

    want, seen, kept = run(), [], []
    continuously()
    assert_same(run(on_batch=seen.append), want)
    assert seen == [3, 3, 3, 2]

    # Broken off behind two batches, the pass goes on with the third.
    with pytest.raises(KeyboardInterrupt):
        run(Log(kept, 2))
    assert len(kept) == 2
    log = Log(kept, 99)
    assert_same(run(log), want)
    assert log.taken == 2
    assert len(kept) == 4
