"""The held-out share of a labelled set: stable, of the right size, and never everything."""

import numpy as np
import pytest
from scipy import stats

from star_jax.data.examples import Example, Prompt
from star_jax.data.splits import hold_out
from star_jax.errors import ConfigError


def examples(rng, count):
    return [Example(Prompt(f"p{number}", "x"), "y") for number in rng.choice(10**6, count, replace=False)]


def test_sides_are_kept_as_the_set_grows_and_their_share_is_right(rng):
    all_of_them = examples(rng, 2000)
    before, after = hold_out(all_of_them[:300], 0.25), hold_out(all_of_them, 0.25)
    assert [e for e in after[0] if e in all_of_them[:300]] == before[0]
    assert [e for e in after[1] if e in all_of_them[:300]] == before[1]
    assert sorted((*after[0], *after[1]), key=all_of_them.index) == all_of_them
    assert stats.binomtest(len(after[1]), 2000, 0.25).pvalue > 1e-7
    order = rng.permutation(2000)
    assert {e.id for e in hold_out([all_of_them[i] for i in order], 0.25)[1]} == {e.id for e in after[1]}


def test_nothing_is_held_out_unless_asked(rng):
    some = examples(rng, 20)
    assert hold_out(some, 0.0) == (some, [])


def test_something_is_left_to_train_on():
    name = next(f"p{n}" for n in range(10**6) if hold_out_alone(f"p{n}"))
    with pytest.raises(ConfigError, match=r"training.validation_fraction 0.9 leaves none of 1 labelled examples"):
        hold_out([Example(Prompt(name, "x"), "y")], 0.9)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_without_examples_there_is_nothing_to_train_on(fraction):
    with pytest.raises(ConfigError, match="every example that was picked was skipped; label at least one"):
        hold_out([], fraction)


def hold_out_alone(name):
    """Whether that id is on the held-out side, seen beside one that is not."""
    others = [Example(Prompt(f"q{n}", "x"), "y") for n in np.arange(60)]
    return any(e.id == name for e in hold_out([Example(Prompt(name, "x"), "y"), *others], 0.9)[1])
