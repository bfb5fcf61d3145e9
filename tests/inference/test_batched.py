"""A program over batches, against the same program over rows: order, gaps, and what is held at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.data.batching import Shape, sequence_batches
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.batched import AHEAD, map_batches

SHAPES = (Shape(3, 5, 12), Shape(3, 9, 24))


def make_rows(rng, count):
    return [
        TokenizedExample(rng.integers(1, 99, size).astype(np.int32), 1) for size in rng.integers(1, 10, count).tolist()
    ]


def summed(batch):
    """Float, whole and wide results of each row."""
    total = jnp.asarray(batch.tokens).sum(axis=1)
    return {"mean": total / jnp.maximum(batch.lengths, 1), "total": total, "ends": jnp.asarray(batch.tokens)[:, :2]}


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("some", [False, True])
def test_results_stand_where_their_rows_do(rng, devices, some):
    rows = make_rows(rng, 40)
    chosen = np.sort(rng.choice(40, 17, replace=False)) if some else np.arange(40)
    seen: list[int] = []
    batches = sequence_batches(rows, SHAPES, devices, chosen if some else None)
    found = map_batches(summed, batches, 1, len(rows), seen.append)
    assert sum(seen) == len(chosen)
    for number, row in enumerate(rows):
        if number in chosen:
            np.testing.assert_allclose(found["mean"][number], row.tokens.mean(), rtol=1e-6)
            assert found["total"][number] == row.tokens.sum()
            assert found["ends"][number].tolist() == [*row.tokens[:2].tolist(), 0][:2]
        else:
            assert np.isnan(found["mean"][number])
            assert found["total"][number] == 0
            assert not found["ends"][number].any()


def test_few_batches_are_held_however_many_there_are(rng):
    """A batch is made when its turn comes, and counted when its results are here."""
    made, counted, most = 0, 0, 0

    def counting(batches):
        nonlocal made
        for batch in batches:
            made += 1
            yield batch

    def on_batch(count):
        nonlocal counted, most
        most = max(most, made - counted)
        counted += 1

    rows = make_rows(rng, 60)
    map_batches(summed, counting(sequence_batches(rows, SHAPES)), 1, len(rows), on_batch)
    assert made == counted > 10
    assert most == AHEAD + 2  # one is made early, to know which is the last
