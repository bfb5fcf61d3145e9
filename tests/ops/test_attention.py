"""Attention against loops over rows, heads, queries and keys."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.ops import attention_xla
from star_jax.ops.attention import AttentionOptions, PackedRows, attend_cache, packed_attention, self_attention


def self_attend(*parts: jax.Array, kernel: Any = None, **options: Any) -> jax.Array:
    """`self_attention`, its options by name."""
    return self_attention(*parts, AttentionOptions(**options), kernel=kernel)


def packed_attend(*parts: jax.Array, starts: Any, lengths: Any, width: int, **options: Any) -> jax.Array:
    """`packed_attention`, rows and options by name."""
    return packed_attention(*parts, PackedRows(starts, lengths, width), AttentionOptions(**options))


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *positions: jax.Array, **options: Any) -> jax.Array:
    """`attend_cache` with keys and values of `B×S×G×d`."""
    return attend_cache(query, key.swapaxes(1, 2), value.swapaxes(1, 2), *positions, AttentionOptions(**options))


def attend_by_loops(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    query_positions: np.ndarray,
    key_positions: np.ndarray,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    batch, length, heads, width = query.shape
    out = np.full(query.shape, np.nan)
    for row in range(batch):
        for head in range(heads):
            group = head // (heads // key.shape[2])
            for i in range(length):
                here = query_positions[row, i]
                first = 0 if window is None else max(0, here - window + 1)
                seen = [j for j in range(key.shape[1]) if first <= key_positions[row, j] <= here]
                if not seen:
                    continue
                scores = np.asarray([query[row, i, head] @ key[row, j, group] for j in seen])
                scores = scores / np.sqrt(width) if scale is None else scores * scale
                scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[row, i, head] = sum(weight * value[row, j, group] for weight, j in zip(weights, seen, strict=True))
    return out


def random_inputs(
    rng: np.random.Generator, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    query = 3 * rng.normal(size=(3, 5, 4, 6))
    key, value = rng.normal(size=(2, 3, 8, groups, 6))
    key_positions = np.stack([rng.permutation([0, 1, 2, 3, 4, 5, -1, -1]) for _ in range(3)])
    query_positions = rng.integers(0, 7, (3, 5))
    query_positions[rng.random((3, 5)) < 0.2] = -1
    return query, key, value, query_positions, key_positions


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_loops(rng: np.random.Generator, groups: int) -> None:
    inputs = random_inputs(rng, groups)
    want = attend_by_loops(*inputs)
    got = np.asarray(jax.jit(attend)(*(jnp.asarray(part) for part in inputs)))
    assert np.isfinite(got).all()
    blind = inputs[3] < 0
    assert (np.isnan(want).all((-1, -2)) == blind).all()
    np.testing.assert_allclose(got[~blind], want[~blind], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.7},
        {"window": 1},
        {"window": 3},
        {"softcap": 0.8},
        {"scale": 0.3, "window": 2, "softcap": 1.5},
    ],
)
def test_scale_window_and_softcap_equal_loops(rng: np.random.Generator, options: dict[str, float]) -> None:
    inputs = random_inputs(rng, 2)
    want = attend_by_loops(*inputs, **options)
    arrays = [jnp.asarray(part) for part in inputs]
    traced = {"window": jnp.asarray(options["window"])} if "window" in options else {}
    got = np.asarray(jax.jit(partial(attend, **options | traced))(*arrays))
    assert np.isfinite(got).all()
    # A window may leave nothing to see where the positions in it are held by no key.
    sighted = ~np.isnan(want).any((-1, -2))
    np.testing.assert_allclose(got[sighted], want[sighted], rtol=1e-4, atol=1e-5)
    without = attend_by_loops(*inputs)
    assert np.abs(want - without)[sighted].max() > 0.01


def test_a_window_as_long_as_the_sequence_changes_nothing(rng: np.random.Generator) -> None:
    arrays = [jnp.asarray(part) for part in random_inputs(rng, 2)]
    windows = (7, np.iinfo(np.int32).max)
    want = attend(*arrays)
    for window in windows:
        np.testing.assert_array_equal(attend(*arrays, window=jnp.asarray(window)), want)


def test_softmax_survives_large_scores(rng: np.random.Generator) -> None:
    query, key, value, query_positions, key_positions = random_inputs(rng, 2)
    inputs = (1e4 * query, key, value, query_positions, key_positions)
    got = np.asarray(jax.jit(attend)(*(jnp.asarray(part) for part in inputs)))
    seen = query_positions >= 0
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[seen], attend_by_loops(*inputs)[seen], rtol=1e-2, atol=1e-2)


def test_bfloat16_stays_bfloat16_and_close(rng: np.random.Generator) -> None:
    query, key, value, query_positions, key_positions = random_inputs(rng, 2)
    narrow = [jnp.asarray(part, jnp.bfloat16) for part in (query, key, value)]
    places = (jnp.asarray(query_positions), jnp.asarray(key_positions))
    got = jax.jit(attend)(*narrow, *places)
    assert got.dtype == jnp.bfloat16
    want = attend_by_loops(*(np.asarray(part, np.float64) for part in narrow), query_positions, key_positions)
    seen = query_positions >= 0
    np.testing.assert_allclose(np.asarray(got, np.float64)[seen], want[seen], atol=0.05)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("length", "groups"), [(1, 4), (1, 2), (5, 4)])
def test_a_cache_of_heads_first_gives_the_same(
    rng: np.random.Generator, dtype: jnp.dtype, length: int, groups: int
) -> None:
    query, key, value, query_positions, key_positions = random_inputs(rng, groups)
    narrow = [jnp.asarray(part, dtype) for part in (query[:, :length], key, value)]
    places = (jnp.asarray(query_positions[:, :length]), jnp.asarray(key_positions))
    got = jax.jit(attend_cache)(narrow[0], narrow[1].swapaxes(1, 2), narrow[2].swapaxes(1, 2), *places)
    want = attend_by_loops(*(np.asarray(part, np.float64) for part in narrow), *(np.asarray(part) for part in places))
    seen = query_positions[:, :length] >= 0
    assert got.dtype == dtype
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(got, np.float64)[seen], want[seen], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("length", [2, 4, 7, 11])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"window": 2}, {"scale": 0.6, "window": 4, "softcap": 1.5}])
def test_whole_rows_equal_loops(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, length: int, options: dict[str, float]
) -> None:
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 2)
    monkeypatch.setattr(attention_xla, "MOST_BLOCKS", 4)
    query = 2 * rng.normal(size=(2, length, 4, 6))
    key, value = rng.normal(size=(2, 2, length, 2, 6))
    positions = np.tile(np.arange(length), (2, 1))
    want = attend_by_loops(query, key, value, positions, positions, **options)
    arrays = [jnp.asarray(part) for part in (query, key, value)]
    got = jax.jit(partial(self_attend, **options, kernel="xla"))(*arrays)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def naive(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Causal attention within whole rows in a few lines, for JAX to differentiate."""
    length, width, copies = query.shape[1], query.shape[-1], query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(part, copies, axis=2) for part in (key, value))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) * (width**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    distance = jnp.arange(length)[:, None] - jnp.arange(length)
    visible = (distance >= 0) & (distance < (length if window is None else window))
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)), value)


OPTIONS: list[dict[str, float]] = [
    {},
    {"scale": 0.3},
    {"window": 3},
    {"softcap": 0.8},
    {"scale": 0.6, "window": 4, "softcap": 1.5},
]


def value_and_slopes(
    function: Callable[..., jax.Array], parts: Sequence[np.ndarray], weight: np.ndarray
) -> list[jax.Array]:
    """What a function makes of query, key and value, and their gradients in the direction of `weight`."""

    @jax.jit
    def run(parts: Sequence[jax.Array], weight: jax.Array) -> list[jax.Array]:
        mixed, pull = jax.vjp(function, *parts)
        return [mixed, *pull(weight)]

    return run(parts, weight)


@pytest.mark.parametrize(("options", "groups"), [(options, 2) for options in OPTIONS] + [({}, 1), ({}, 4)])
def test_gradients_of_whole_rows_are_those_of_the_formula(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, groups: int, options: dict[str, float]
) -> None:
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 3)
    query, weight = rng.normal(size=(2, 2, 8, 4, 6)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, 8, groups, 6)).astype(np.float32)
    got = value_and_slopes(partial(self_attend, kernel="xla", **options), [query, key, value], weight)
    want = value_and_slopes(partial(naive, **options), [query, key, value], weight)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_gradients_in_bfloat16_are_close(rng: np.random.Generator) -> None:
    shapes = [(2, 9, 4, 6), (2, 9, 2, 6), (2, 9, 2, 6), (2, 9, 4, 6)]
    *narrow, weight = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    got = value_and_slopes(partial(self_attention, kernel="xla"), narrow, weight)
    want = value_and_slopes(naive, [part.astype(jnp.float32) for part in narrow], weight.astype(jnp.float32))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.asarray(ours, np.float32) - theirs
        assert np.abs(error).max() < 0.03 * np.abs(theirs).max()


def test_gradients_of_whole_rows_equal_those_of_the_library(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 3)
    query, weight = jnp.asarray(rng.normal(size=(2, 2, 8, 4, 6)), jnp.float32)
    key, value = jnp.asarray(rng.normal(size=(2, 2, 8, 2, 6)), jnp.float32)

    def ours(query: jax.Array, key: jax.Array, value: jax.Array, window: jax.Array) -> jax.Array:
        return jnp.sum(weight * self_attention(query, key, value, AttentionOptions(window=window), kernel="xla"))

    def library(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True, local_window_size=(2, 0))
        return jnp.sum(weight * mixed)

    got = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(query, key, value, jnp.asarray(3))
    want = jax.jit(jax.grad(library, argnums=(0, 1, 2)))(query, key, value)
    for ours_of, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(ours_of, theirs, rtol=1e-3, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(rng: np.random.Generator) -> None:
    lengths = np.asarray([9, 1, 5])
    real = np.arange(9)[None, :, None, None] < lengths[:, None, None, None]
    parts = [jnp.asarray(rng.normal(size=(3, 9, 2, 4)), jnp.float32) for _ in range(3)]
    others = [jnp.where(real, part, jnp.asarray(100 * rng.normal(size=part.shape), jnp.float32)) for part in parts]

    def total(parts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        out = self_attention(*parts, kernel="xla")
        return jnp.sum(jnp.where(real, out, 0) ** 2), out

    read = jax.jit(jax.grad(total, has_aux=True))
    (gradients, out), (other_gradients, other_out) = read(parts), read(others)
    for first, second in zip([out, *gradients], [other_out, *other_gradients], strict=True):
        assert np.isfinite(second).all()
        np.testing.assert_allclose(np.where(real, first, 0), np.where(real, second, 0), rtol=1e-4, atol=1e-5)
    assert not any(np.where(real, 0, gradient).any() for gradient in other_gradients)


# Rows in a line.

RAGGED = [3, 8, 1, 5]


def line_inputs(rng: np.random.Generator, slots: int) -> list[np.ndarray]:
    """Query, key, value, and the direction of a gradient, with rubbish behind the last row."""
    shapes = [(slots, 4, 6), (slots, 2, 6), (slots, 2, 6), (slots, 4, 6)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def starts_of(lengths: list[int]) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def in_rows(part: np.ndarray, lengths: list[int]) -> np.ndarray:
    """`B×8×…` of a line, 0 at padding."""
    rows = np.zeros((len(lengths), 8, *part.shape[1:]), np.float32)
    for row, (start, length) in enumerate(zip(starts_of(lengths), lengths, strict=True)):
        rows[row, :length] = part[start : start + length]
    return rows


@pytest.mark.parametrize(
    ("lengths", "options", "spare"),
    [(RAGGED, options, 0) for options in OPTIONS]
    + [(lengths, {}, 5) for lengths in (RAGGED, [0, 4, 0, 0, 7, 0], [8, 8], [1], [0, 0, 2])],
)
def test_rows_of_a_line_are_rows_by_themselves(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, lengths: list[int], spare: int, options: dict[str, float]
) -> None:
    """In value and gradient; three lengths are compiled here, 3, 6 and 8, and rows may be empty."""
    monkeypatch.setattr(attention_xla, "ROW_STEP", 3)
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 4)
    *parts, weight = line_inputs(rng, sum(lengths) + spare)
    window = {"window": jnp.asarray(options["window"])} if "window" in options else {}
    places = {"starts": jnp.asarray(starts_of(lengths)), "lengths": jnp.asarray(lengths), "width": 8}
    run, reference = partial(packed_attend, **places, **options | window), partial(naive, **options)
    rows = [in_rows(part, lengths) for part in parts]
    got, want = value_and_slopes(run, parts, weight), value_and_slopes(reference, rows, in_rows(weight, lengths))
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape[0] == sum(lengths) + spare
        assert (np.asarray(ours)[sum(lengths) :] == 0).all()
        real = np.arange(8) < np.asarray(lengths)[:, None]
        np.testing.assert_allclose(ours[: sum(lengths)], np.asarray(theirs)[real], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steep", [0, 1, 2])
def test_a_row_with_large_scores_does_not_reach_its_neighbours(rng: np.random.Generator, steep: int) -> None:
    """A row is computed up to a multiple of some length, beyond its end: with the queries of the next row."""
    lengths = [3, 2, 3]
    *parts, weight = line_inputs(rng, sum(lengths) + 2)
    starts = starts_of(lengths)
    parts[1][starts[steep] : starts[steep] + lengths[steep]] *= 300
    run = partial(packed_attend, starts=jnp.asarray(starts), lengths=jnp.asarray(lengths), width=8)
    got = value_and_slopes(run, parts, weight)
    want = value_and_slopes(naive, [in_rows(part, lengths) for part in parts], in_rows(weight, lengths))
    for ours, theirs in zip(got, want, strict=True):
        real = np.arange(8) < np.asarray(lengths)[:, None]
        np.testing.assert_allclose(ours[: sum(lengths)], np.asarray(theirs)[real], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("part", range(4))
def test_a_row_that_is_not_finite_does_not_reach_its_neighbours(
    rng: np.random.Generator, part: int, bad: float
) -> None:
    """In query, key, value or the gradient of the result; 0 · NaN is NaN."""
    lengths = [3, 2, 3]
    *parts, weight = line_inputs(rng, sum(lengths) + 2)
    starts = starts_of(lengths)
    run = partial(packed_attend, starts=jnp.asarray(starts), lengths=jnp.asarray(lengths), width=8)
    want = value_and_slopes(run, parts, weight)
    spoiled = [np.copy(one) for one in (*parts, weight)]
    spoiled[part][starts[1] + 1] = bad
    got = value_and_slopes(run, spoiled[:3], spoiled[3])
    others = np.r_[0:3, 5 : sum(lengths) + 2]
    for found, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.asarray(found)[others], np.asarray(expected)[others])
        assert np.isfinite(expected).all()
    assert not all(np.isfinite(found).all() for found in got)


@pytest.mark.parametrize("options", [{}, {"scale": 0.6, "window": 4, "softcap": 1.5}])
def test_a_line_in_bfloat16_is_close(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    """In value and gradient, to rows by themselves in float32."""
    monkeypatch.setattr(attention_xla, "ROW_STEP", 3)
    monkeypatch.setattr(attention_xla, "QUERY_BLOCK", 4)
    narrow = [jnp.asarray(part, jnp.bfloat16) for part in line_inputs(rng, sum(RAGGED) + 2)]
    places = {"starts": jnp.asarray(starts_of(RAGGED)), "lengths": jnp.asarray(RAGGED), "width": 8}
    got = value_and_slopes(partial(packed_attend, **places, **options), narrow[:3], narrow[3])
    *rows, weight = (in_rows(np.asarray(part, np.float32), RAGGED) for part in narrow)
    want = value_and_slopes(partial(naive, **options), rows, weight)
    real = np.arange(8) < np.asarray(RAGGED)[:, None]
    for found, expected in zip(got, want, strict=True):
        assert found.dtype == jnp.bfloat16
        error = np.asarray(found, np.float32)[: sum(RAGGED)] - np.asarray(expected)[real]
        assert np.abs(error).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_has_room_for_the_query_itself(rng: np.random.Generator, window: int) -> None:
    query, key, value, _ = line_inputs(rng, 8)
    rows = query[None], key[None], value[None]
    places = jnp.arange(8)[None]
    calls = (
        lambda: self_attention(*rows, AttentionOptions(window=window)),
        lambda: packed_attention(
            *(query, key, value), PackedRows(jnp.zeros(1, int), jnp.full(1, 8), 8), AttentionOptions(window=window)
        ),
        lambda: attend(*rows, places, places, window=window),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"window is {window}; a query sees at least 1 position"):
            call()


@pytest.mark.parametrize("width", [8, 50])
def test_a_line_under_vmap_is_the_loop(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Samples share their rows. Where a row may be long, the lengths that are compiled for lie further apart."""
    monkeypatch.setattr(attention_xla, "ROW_STEP", 3)
    monkeypatch.setattr(attention_xla, "MOST_LENGTHS", 4)
    lengths = [5, 8, 2]
    samples = [line_inputs(rng, 17) for _ in range(3)]
    places = {"starts": jnp.asarray(starts_of(lengths)), "lengths": jnp.asarray(lengths), "width": width}

    def run(query: jax.Array, key: jax.Array, value: jax.Array, weight: jax.Array) -> list[jax.Array]:
        mixed, pull = jax.vjp(partial(packed_attend, **places), query, key, value)
        return [mixed, *pull(weight)]

    together, alone = jax.jit(jax.vmap(run))(*(np.stack(part) for part in zip(*samples, strict=True))), jax.jit(run)
    for number, sample in enumerate(samples):
        for ours, theirs in zip(together, alone(*sample), strict=True):
            np.testing.assert_allclose(ours[number], theirs, rtol=1e-4, atol=1e-5)
