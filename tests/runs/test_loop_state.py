import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from star_jax.acquisition.needs import Embedding, Measure
from star_jax.active.pool import SKIPPED, PoolState
from star_jax.active.state import Choice, LoopState
from star_jax.models.lora import Adapter
from star_jax.runs.loop_state import KeptChoice, forget_choices, load_choice, load_state, save_choice, save_state


def state_of(number, base=None):
    a, b = jax.random.split(jax.random.key(number))
    weights = {"layers": {"q_proj": {"a": jax.random.normal(a, (2, 3, 4)), "b": jax.random.normal(b, (2, 4, 5))}}}
    scale = {"layers": {"q_proj": {"scale": jnp.full(2, 0.5)}}}
    labelled_in = jnp.array([-1, SKIPPED, number], jnp.int32)
    return LoopState(number, PoolState(labelled_in), {}, Adapter(weights, scale), base or {})


ENTROPY = Measure("token_entropy", "base")
ENTROPIES, LENGTHS = jnp.array([0.1, jnp.nan, 3.0]), jnp.array([3, 1, 2], jnp.int32)


@pytest.mark.parametrize(
    "base",
    [{}, {Measure("token_entropy", "base"): ENTROPIES, Measure("response_tokens", "base"): LENGTHS}],
    ids=["none", "two"],
)
def test_newest_state_comes_back_bit_for_bit(tmp_path, base):
    for number in (1, 2):
        save_state(tmp_path, state_of(number, base))
    saved, loaded = state_of(2, base), load_state(tmp_path)
    assert loaded.round == 2
    assert loaded.base.keys() == base.keys()
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(saved), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert jnp.asarray(ours).dtype == jnp.asarray(theirs).dtype
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["002"]


@pytest.mark.parametrize("former", [None, ENTROPIES])
def test_a_former_state_comes_back_and_its_nameless_measure_is_found_anew(tmp_path, former):
    """Written before the base model's measures had names: one array, or nothing."""
    state = state_of(3)
    tree = {"labelled_in": state.pool.labelled_in, "weights": state.adapter.weights, "scale": state.adapter.scale}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((tmp_path / "state" / "003").absolute(), tree | ({} if former is None else {"base": former}))
    loaded = load_state(tmp_path)
    assert (loaded.round, loaded.base) == (3, {})
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # What is saved from there has names.
    save_state(tmp_path, loaded._replace(round=4, base={ENTROPY: ENTROPIES}))
    np.testing.assert_array_equal(load_state(tmp_path).base[ENTROPY], ENTROPIES)


def test_vectors_of_the_base_model_are_not_written(tmp_path):
    """They are large, and are found again."""
    save_state(tmp_path, state_of(1, {ENTROPY: ENTROPIES, Embedding(): jnp.ones((3, 5))}))
    assert list(load_state(tmp_path).base) == [ENTROPY]


def test_half_written_state_does_not_count(tmp_path):
    assert load_state(tmp_path) is None
    save_state(tmp_path, state_of(1))
    for name in ("002.orbax-checkpoint-tmp-0", "001.orbax-checkpoint-tmp"):
        (tmp_path / "state" / name / "d").mkdir(parents=True)
        (tmp_path / "state" / name / "d" / "part").write_bytes(b"half")
    assert load_state(tmp_path).round == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["001"]


def test_what_an_interrupted_save_leaves_is_removed(tmp_path, monkeypatch):
    """Whatever Orbax calls it: killed before the last rename, it leaves a folder beside the whole ones."""
    save_state(tmp_path, state_of(1))

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "renames"):
            patch.setattr(os, name, killed)
            if hasattr(Path, name):
                patch.setattr(Path, name, killed)
        with pytest.raises(KeyboardInterrupt):
            save_state(tmp_path, state_of(2))
    assert len(list((tmp_path / "state").iterdir())) > 1
    assert load_state(tmp_path).round == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["001"]
    save_state(tmp_path, state_of(2))
    assert load_state(tmp_path).round == 2


@pytest.mark.parametrize("guesses", [None, ["a \u4e2d\n", "", "x\0"]])
@pytest.mark.parametrize("scores", [None, jnp.array([0.25, -jnp.inf, 3.0])])
def test_what_a_round_chose_is_kept_until_it_is_trained_on(tmp_path, scores, guesses):
    """With the base model's measures, which may be of this query alone; its vectors are found again."""
    known = {ENTROPY: ENTROPIES, Embedding("base"): jnp.ones((3, 2))}
    choice = Choice(jnp.array([4, 1, 2], jnp.int32), scores, None, scores, None, known, guesses)
    assert load_choice(tmp_path, 1, "these settings") is None
    save_choice(tmp_path, 1, KeptChoice(choice, {"score": 2.5, "compile": 0.25}), "these settings")
    assert load_choice(tmp_path, 2, "these settings") is None
    assert load_choice(tmp_path, 1, "other settings") is None
    again, seconds = load_choice(tmp_path, 1, "these settings")
    assert seconds == {"score": 2.5, "compile": 0.25}
    assert set(again.base_features) == {ENTROPY}
    np.testing.assert_array_equal(again.base_features[ENTROPY], ENTROPIES)
    assert again.guesses == guesses
    for ours, theirs in zip(again[:5], choice[:5], strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    # A file of a former version has neither guesses nor measures.
    file = tmp_path / "choice-001.npz"
    with np.load(file) as arrays:
        former = {name: arrays[name] for name in arrays.files if name != "guesses" and "base." not in name}
    np.savez(file, **former)
    assert load_choice(tmp_path, 1, "these settings").choice[5:] == ({}, None)
    forget_choices(tmp_path)
    assert load_choice(tmp_path, 1, "these settings") is None
    assert not list(tmp_path.iterdir())


def test_a_copy_that_somebody_keeps_beside_the_state_is_kept(tmp_path):
    save_state(tmp_path, state_of(1))
    for name in ("001.bak", "²"):
        (tmp_path / "state" / name).mkdir()
    assert load_state(tmp_path).round == 1
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"001", "001.bak", "²"}
