"""Tokens in two arrays, in memory and in a file, against a list of arrays."""

import os
import time

import numpy as np
import pytest

from star_jax.data import store
from star_jax.data.store import TokenPlace, TokenStore, read, stored


def make_prompts(rng, count=9):
    return [rng.integers(0, 99, size).astype(np.int32) for size in rng.integers(0, 7, count).tolist()]


def assert_same(found, want):
    assert len(found) == len(want)
    np.testing.assert_array_equal(found.lengths, [len(prompt) for prompt in want])
    for ours, theirs in zip([*found, *found[2:5], found[-1]], [*want, *want[2:5], want[-1]], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int32
    with pytest.raises(IndexError):
        found[len(want)]
    full = [prompt for prompt in want if len(prompt)]
    assert [row.tolist() for row in found.without_empty()] == [row.tolist() for row in full]


def test_it_is_the_list_of_prompts(rng, tmp_path):
    for count in (5, 6, 7, 100):
        prompts = make_prompts(rng, count)
        assert_same(TokenStore.of(iter(prompts)), prompts)
        assert_same(stored(tmp_path / "one.tokens", dict, iter(prompts)), prompts)
        found = read(tmp_path / "one.tokens")
        assert found is not None
        assert_same(found[0], prompts)
    assert [path.name for path in tmp_path.iterdir()] == ["one.tokens"]
    assert len(TokenStore.of([])) == len(stored(tmp_path / "none", dict, [])) == 0


def test_facts_are_those_when_all_prompts_are_made(rng, tmp_path):
    made = []

    def prompts():
        for prompt in make_prompts(rng):
            made.append(len(prompt))
            yield prompt

    stored(tmp_path / "one", lambda: {"longest": max(made)}, prompts())
    assert read(tmp_path / "one")[1] == {"longest": max(made)}


def test_what_a_killed_process_has_left_is_removed_and_what_others_write_is_not(tmp_path):
    for name, minutes in (("one.1.tmp", 61), ("one.2.tmp", 59), ("notes.tmp", 61)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - 60 * minutes,) * 2)
    stored(tmp_path / "one", dict, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.tmp", "one", "one.2.tmp"]


def test_a_file_that_is_cut_or_damaged_is_none(rng, tmp_path):
    file = tmp_path / "one"
    prompts = make_prompts(rng, 40)
    stored(file, dict, prompts)
    content = file.read_bytes()
    assert read(tmp_path / "other") is None
    header = len(content[: store._HEADER_BYTES].rstrip())
    places = [*range(header), *rng.integers(store._HEADER_BYTES, len(content), 40).tolist()]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(7))
        for damaged in (content[:place], bytes(flipped)):
            file.write_bytes(damaged)
            found = read(file)
            if found is not None:  # a blank of the header
                assert_same(found[0], prompts)
    file.write_bytes(content)
    assert_same(read(file)[0], prompts)


def test_the_name_depends_on_texts_their_order_the_tokenizer_and_the_way(tmp_path):
    place = TokenPlace(tmp_path / "pool-", "one")
    names = {
        place.file("a", ["ab", "c"]),
        place.file("a", ["a", "bc"]),
        place.file("a", ["c", "ab"]),
        place.file("a", ["ab", "c", ""]),
        place.file("b", ["ab", "c"]),
        TokenPlace(tmp_path / "pool-", "two").file("a", ["ab", "c"]),
    }
    assert len(names) == 6
    assert place.file("a", iter(["ab", "c"])) in names
    assert {path.parent for path in names} == {tmp_path}


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def prompts():
        yield np.zeros(3, np.int32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "one", dict, prompts())
    assert not list(tmp_path.iterdir())
