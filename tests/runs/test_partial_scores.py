"""Results of batches kept as they come, against a pass that nothing interrupted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.needs import Embedding, Measure
from star_jax.active.loop import init
from star_jax.active.pool import label
from star_jax.data.batching import Shape, sequence_batches
from star_jax.data.bucketing import Shapes
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.batched import map_batches
from star_jax.models.lora import Adapter
from star_jax.runs.partial_scores import FLUSH_SECONDS, PartialPass, PartialScores, query_origin

SHAPES = (Shape(3, 5, 12), Shape(3, 9, 24))


class Interrupted(Exception):
    """What ends a pass in the middle."""


class Program:
    """Sums rows, counts how often it is run, and stops after so many batches."""

    def __init__(self, most=10**6):
        self.runs, self.most = 0, most

    def __call__(self, batch):
        if self.runs == self.most:
            raise Interrupted
        self.runs += 1
        total = jnp.asarray(batch.tokens).sum(axis=1)
        return {"mean": total / jnp.maximum(batch.lengths, 1), "first": jnp.asarray(batch.tokens)[:, :2]}, total


@pytest.fixture
def rows(rng):
    return [
        TokenizedExample(rng.integers(1, 99, size).astype(np.int32), 1) for size in rng.integers(1, 10, 40).tolist()
    ]


def scored(rows, program, log=None):
    seen: list[int] = []
    (found, total) = map_batches(program, sequence_batches(rows, SHAPES), 1, len(rows), seen.append, log)
    assert sum(seen) == len(rows)
    return {**found, "total": total}


def assert_same(found, want):
    for name, values in want.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def kept_by(path, rows, batches, origin="one"):
    """The file of a pass that ended after so many batches."""
    partial = PartialScores(path, origin)
    with pytest.raises(Interrupted):
        scored(rows, Program(batches), partial.log("scores"))
    partial.close()
    return path.with_name(f"{path.name}-scores")


def test_a_pass_goes_on_where_it_was(tmp_path, rows):
    want, whole = scored(rows, program := Program()), program.runs
    assert whole > 8
    partial = PartialScores(tmp_path / "p", "one")
    known = 0
    for batches in (4, 1, 5, 10**6):  # the last two of a pass that is interrupted are with the device
        program, log = Program(batches), partial.log("scores")
        if batches < whole:
            with pytest.raises(Interrupted):
                scored(rows, program, log)
            known += max(batches - 2, 0)
        else:
            assert_same(scored(rows, program, log), want)
            assert program.runs == whole - known
    program = Program()
    assert_same(scored(rows, program, partial.log("scores")), want)
    assert program.runs == 1  # the last tells the structure
    partial.remove()
    assert not list(tmp_path.iterdir())


def test_passes_have_files_of_their_own_and_what_is_of_something_else_counts_for_nothing(tmp_path, rows):
    want = scored(rows, whole := Program())
    kept_by(tmp_path / "p", rows, 6)
    for path, origin, name in ((tmp_path / "p", "two", "scores"), (tmp_path / "p", "one", "others")):
        program, partial = Program(), PartialScores(path, origin)
        assert_same(scored(rows, program, partial.log(name)), want)
        assert program.runs == whole.runs
        partial.close()
    kept_by(tmp_path / "p", rows, 6)
    program, partial = Program(), PartialScores(tmp_path / "p", "one")
    others = [row._replace(tokens=row.tokens[::-1]) for row in rows[::-1]]
    found = scored(others, program, partial.log("scores"))
    assert_same(found, scored(others, Program()))  # other batches: none of what was kept is theirs
    partial.close()


def test_a_file_that_is_cut_or_damaged_anywhere_is_used_up_to_there(tmp_path, rows, rng):
    want = scored(rows, whole := Program())
    content = kept_by(tmp_path / "p", rows, 8).read_bytes()
    counts = set()
    for place in [*rng.integers(0, len(content), 30).tolist(), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        for damaged in (content[:place], bytes(flipped)):
            (tmp_path / "p-scores").write_bytes(damaged)
            program, partial = Program(), PartialScores(tmp_path / "p", "one")
            assert_same(scored(rows, program, partial.log("scores")), want)
            partial.close()
            counts.add(whole.runs - program.runs)
            again, partial = Program(), PartialScores(tmp_path / "p", "one")
            assert_same(scored(rows, again, partial.log("scores")), want)
            partial.close()
            assert again.runs == 1
    assert min(counts) == 0
    assert max(counts) == 5


def test_records_reach_the_system_within_a_second(tmp_path, rows):
    """By the clock, not by the record."""
    now = 0.0
    log = PartialPass(tmp_path / "p", "one", lambda: now)
    batch, *_ = sequence_batches(rows, SHAPES)
    assert log.take(batch) is None
    log.add(batch, [np.zeros(3, np.float32)])
    before = (tmp_path / "p").stat().st_size
    log.add(batch, [np.zeros(3, np.float32)])
    assert (tmp_path / "p").stat().st_size == before
    now = FLUSH_SECONDS
    log.add(batch, [np.zeros(3, np.float32)])
    size = (tmp_path / "p").stat().st_size
    assert size > before
    log.close()
    assert (tmp_path / "p").stat().st_size == size


def test_the_origin_of_a_query_is_all_that_its_scores_depend_on():
    factors = {"layers": {"q_proj": {"a": jnp.ones((1, 2, 3)), "b": jnp.zeros((1, 3, 2))}}}
    adapter = Adapter(factors, {"layers": {"q_proj": {"scale": jnp.ones(1)}}})
    state = init(5)._replace(round=1, adapter=adapter)
    base = {Measure("margin", "base"): jnp.ones(5)}
    key, shapes = jax.random.key(0), Shapes(SHAPES, SHAPES)
    trained = jax.tree.map(lambda leaf: leaf + 1e-7, adapter)
    others = [
        ("two", state, key, shapes),
        ("one", state._replace(round=2), key, shapes),
        ("one", state._replace(adapter=trained), key, shapes),
        ("one", state._replace(pool=label(state.pool, jnp.asarray([3]), 0)), key, shapes),
        ("one", state._replace(base=base), key, shapes),
        ("one", state, jax.random.key(1), shapes),
        ("one", state, key, shapes._replace(sequences=SHAPES[:1])),
    ]
    assert len({query_origin(*one) for one in [("one", state, key, shapes), *others]}) == len(others) + 1
    # Vectors of the base model are not in a state that was read from disk, and change no measure.
    vectors = {Embedding(): jnp.ones((5, 2))}
    assert query_origin("one", state._replace(base=vectors), key, shapes) == query_origin("one", state, key, shapes)
