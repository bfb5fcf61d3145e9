"""Attention of rows that branch against loops over what each place sees."""

import jax
import numpy as np
import pytest

from star_jax.data.branches import TRUNK, grow_tree
from star_jax.ops import attention_branches, attention_xla
from star_jax.ops.attention import AttentionOptions
from star_jax.ops.attention_branches import Part, SharedKeys, attend_branches, branching_attention, combined
from star_jax.ops.packing import Branches, make_packing, pack_rows

HEADS, GROUPS, WIDTH, BEFORE = 4, 2, 6, 3
TRUNKS = (3, 1)
TREE = grow_tree(((1, 2, 3, 4), (1, 2, 5, 6), (1, 7, 8), (9, 9)), (0, 0, 0, 0))
LENGTHS = [trunk + len(TREE.tokens) for trunk in TRUNKS]
ROOM = max(LENGTHS) + 2
OPTIONS = {
    "plain": AttentionOptions(),
    "window": AttentionOptions(window=3),
    "cap": AttentionOptions(scale=0.7, window=5, softcap=1.2),
}


def seen_by(trunk, place):
    """Places that one sees, by following what it continues."""
    if place < trunk:
        return list(range(place + 1))
    parent = max((one for one in range(place - trunk) if TREE.ends[one] > place - trunk), default=TRUNK)
    return [*seen_by(trunk, trunk - 1 if parent == TRUNK else trunk + parent), place]


def slow(query, keys, values, options):
    """One head: mean of the values of what is seen by softmax of the scores."""
    scores = keys @ query * options.scale_for(WIDTH)
    if options.softcap is not None:
        scores = options.softcap * np.tanh(scores / options.softcap)
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


@pytest.fixture
def arrays(rng):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    rows = [draw(len(TRUNKS), ROOM, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    return rows, SharedKeys(draw(GROUPS, BEFORE, WIDTH), draw(GROUPS, BEFORE, WIDTH))


def branches():
    positions, ends = np.zeros((2, len(TRUNKS), ROOM), np.int32)
    for row, trunk in enumerate(TRUNKS):
        length = LENGTHS[row]
        positions[row, :length] = [*range(trunk), *(trunk + depth for depth in TREE.depths)]
        ends[row, :length] = [length] * trunk + [trunk + end for end in TREE.ends]
    return Branches(positions, ends)


@pytest.mark.parametrize("block", [128, 2], ids=["one-block", "blocks"])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "behind-a-beginning"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_place_sees_what_it_continues(arrays, monkeypatch, options, shared, block):
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", block)
    monkeypatch.setattr(attention_branches, "SCORES_AT_ONCE", block * HEADS * BEFORE)
    (query, key, value), before = arrays
    options, known = OPTIONS[options], branches()
    packing = make_packing(np.asarray(LENGTHS), ROOM, sum(LENGTHS) + 3, known)
    packed = [pack_rows(x, packing) for x in (query, key, value)]
    found = np.asarray(branching_attention(*packed, packing, options, before if shared else None))
    assert np.isfinite(found).all()
    for slot in range(sum(LENGTHS)):
        row, place = int(packing.rows[slot]), int(packing.places[slot])
        at = known.positions[row]
        near = [one for one in seen_by(TRUNKS[row], place) if at[place] - at[one] < (options.window or ROOM)]
        far = [one for one in range(BEFORE) if at[place] + BEFORE - one < (options.window or ROOM)] if shared else []
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            keys = np.concatenate([before.keys[group, far], key[row, near, group]])
            values = np.concatenate([before.values[group, far], value[row, near, group]])
            want = slow(query[row, place, head], keys, values, options)
            np.testing.assert_allclose(found[slot, head], want, rtol=1e-5, atol=1e-5)


def test_rows_without_branches_are_refused(arrays):
    (query, key, value), _ = arrays
    packing = make_packing(np.asarray(LENGTHS), ROOM, sum(LENGTHS))
    with pytest.raises(ValueError, match="do not branch"):
        branching_attention(*(pack_rows(x, packing) for x in (query, key, value)), packing, AttentionOptions())


def test_padding_is_finite_and_a_part_that_sees_nothing_has_no_weight(arrays):
    (query, key, value), _ = arrays
    part = attend_branches(query, key, value, branches(), AttentionOptions())
    assert np.isfinite(part.mixed).all()
    blind = Part(jax.numpy.full_like(part.mixed, 7.0), jax.numpy.full_like(part.log_total, attention_xla.MASKED))
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(combined(part, blind)[row, :length], part.mixed[row, :length])
