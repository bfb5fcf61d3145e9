"""The ladder of training steps and what is taken from it, against all choices there are, and on a real dataset."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.batching import Shape, make_batch
from star_jax.data.bucketing import StepLadder
from star_jax.data.step_shapes import (
    OCTAVES,
    RUNGS_AN_OCTAVE,
    USUAL_SHAPES,
    WIDTHS,
    random_steps,
    shapes_of_steps,
    step_ladder,
)
from star_jax.data.tokenization import TokenizedExample

LENGTHS_FILE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gsm8k_lengths.json"


def rows_of(lengths) -> list[TokenizedExample]:
    return [TokenizedExample(np.ones(length, np.int32), 1) for length in lengths]


def batched(step, shapes, devices):
    return make_batch(rows_of(step), range(len(step)), shapes, devices)


@st.composite
def trainings(draw):
    """Steps of at most so many rows, none of them over the longest; rows of a step, longest row, devices."""
    rows, longest, devices = draw(st.integers(1, 20)), draw(st.integers(1, 300)), draw(st.integers(1, 8))
    step = st.lists(st.integers(1, longest), min_size=1, max_size=rows)
    return draw(st.lists(step, min_size=1, max_size=30)), rows, longest, devices


@given(trainings(), st.floats(0, 1e6))
@settings(max_examples=120, deadline=None)
def test_a_training_takes_shapes_of_the_ladder_and_each_step_fits_one(training, program):
    steps, rows, longest, devices = training
    ladder, share = step_ladder(steps[::2], rows, longest, devices), -(-rows // devices)
    assert len(ladder.usual) <= USUAL_SHAPES + 1
    assert len(ladder.shapes) <= (OCTAVES * RUNGS_AN_OCTAVE + 1 + USUAL_SHAPES) * len(WIDTHS)
    assert ladder.shapes[-1] == Shape(share, longest, share * longest)
    assert {*ladder.usual} <= {*ladder.shapes}
    assert all(shape.rows == share and shape.width <= longest for shape in ladder.shapes)
    shapes = shapes_of_steps(ladder, steps, program, devices)
    assert {*shapes} <= {*ladder.shapes}
    assert shapes == shapes_of_steps(ladder, steps, program, devices)
    for step in steps:
        batch = batched(step, shapes, devices)
        assert int(batch.lengths.sum()) == sum(step)
        assert len(batch.tokens) == devices * share
    # Any other step fits the ladder.
    for step in ([longest] * rows, [longest], [1], [1] * rows):
        assert int(batched(step, ladder.shapes, devices).lengths.sum()) == sum(step)


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=30),
    st.sets(st.sampled_from(range(9, 120, 13))),
    st.integers(0, 300),
)
@settings(max_examples=80, deadline=None)
def test_what_is_taken_costs_least_of_all_choices(steps, usual, program):
    """Room over all steps, and the price of each program that is not usual, over every set of capacities there is."""
    capacities = [*range(9, 120, 13), 120]
    shapes = {capacity: Shape(3, 40, capacity) for capacity in capacities}
    ladder = StepLadder(tuple(shapes.values()), tuple(shapes[capacity] for capacity in usual))

    def cost(taken):
        room = sum(min(size for size in taken if size >= sum(step)) for step in steps)
        return room + program * len({*taken} - usual)

    holds_all = max(map(sum, steps))
    sets = (chosen for count in range(1, 11) for chosen in itertools.combinations(capacities, count))
    least = min(cost(chosen) for chosen in sets if max(chosen) >= holds_all)
    taken = [shape.capacity for shape in shapes_of_steps(ladder, steps, program)]
    assert cost(taken) == least


def test_a_program_of_its_own_is_for_many_steps_that_are_not_as_usual():
    """Rows that turn out longer than thought: a few steps take what holds any, many pay for a program."""
    ladder = step_ladder([[20] * 8, [30] * 8], 8, 100)
    assert ladder.usual == (Shape(8, 32, 160), Shape(8, 32, 240), Shape(8, 100, 800))
    usual, long = [[20] * 8] * 30, [[45] * 8]

    def taken(steps):
        return [shape.capacity for shape in shapes_of_steps(ladder, steps, program=1000)]

    assert taken(usual) == [160]
    assert taken([*usual, *long]) == [160, 800]
    capacities = taken([*usual, *long * 30])
    assert capacities[0] == 160
    assert 360 <= capacities[1] < 1.2 * 360


def test_a_shape_is_as_wide_as_its_longest_row():
    """Steps of short rows do not pay for the attention of long ones."""
    narrow, wide = shapes_of_steps(step_ladder([], 8, 400), [[20] * 8, [390] * 8] * 100, program=0)
    assert (narrow.width, wide.width) == (112, 400)


def test_steps_that_fit_nothing_are_refused():
    ladder = StepLadder((Shape(2, 50, 80),))
    with pytest.raises(ValueError, match="step of 90 tokens"):
        shapes_of_steps(ladder, [[45, 45]], 0)
    with pytest.raises(ValueError, match="row of 60 tokens"):
        shapes_of_steps(ladder, [[60]], 0)


def test_random_steps_are_the_same_for_the_same_lengths():
    labelled, replay = [3, 8, 21], [50, 60]
    steps = random_steps(labelled, replay, (5, 2))
    assert random_steps(np.array(labelled), replay, (5, 2)) == steps
    assert all(set(step[:5]) <= set(labelled) and set(step[5:]) <= set(replay) and len(step) == 7 for step in steps)
    drawn = list(itertools.chain.from_iterable(steps))
    for length in labelled:
        # Of 1280 draws a third, ± 5 standard deviations of √(1/3 · 2/3 / 1280).
        assert drawn.count(length) / (5 * len(steps)) == pytest.approx(1 / 3, abs=0.066)
    assert random_steps([], [], (5, 2)) == random_steps(labelled, replay, (0, 0)) == []
    assert {len(step) for step in random_steps([], replay, (5, 2))} == {2}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("picked", ["random", "longest"])
def test_padding_of_real_steps(devices, picked):
    """Three epochs of random steps of 8 on 500 rows of GSM8K, whichever they are; devices wait for the fullest.

    A program is worth as much as about three steps.
    """
    lengths = sorted(sum(pair) for pair in json.loads(LENGTHS_FILE.read_text())["lengths"])
    rng = np.random.default_rng(3)
    rows = rng.permutation(lengths)[:500] if picked == "random" else np.asarray(lengths[-500:])
    orders = [rng.permutation(500) for _ in range(3)]
    steps = [rows[order[start : start + 8]].tolist() for order in orders for start in range(0, 500, 8)]
    ladder = step_ladder(random_steps(lengths, [], (8, 0)), 8, max(lengths), devices)
    shapes = shapes_of_steps(ladder, steps, 4000 / devices, devices)
    batches = [batched(step, shapes, devices) for step in steps]
    fullest = sum(int(batch.lengths.reshape(devices, -1).sum(axis=1).max()) for batch in batches)
    assert len(shapes) <= 8
    assert 1 - fullest / sum(batch.capacity for batch in batches) < 0.1
