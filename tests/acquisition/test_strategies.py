"""The contract every registered strategy keeps, and what sets each apart."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.dynamic import NORMALISERS
from star_jax.acquisition.strategies import STRATEGIES, Strategy, acquire, check_finite, get_strategy, resolve
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError, ScoreError

SIZE, COUNT, QUERIES = 32, 7, 9
CONFIGS = {
    "default": AcquisitionConfig(),
    "zscore": AcquisitionConfig(normaliser="zscore", schedule="cosine", reduction="mean"),
    "power": AcquisitionConfig(selection="power", power=2.0),
    "released": AcquisitionConfig(arithmetic="released"),
}

TRACED = []


def traced(strategy, config, *arguments):
    TRACED.append((strategy, config))
    return acquire(strategy, config, *arguments)


JITTED = jax.jit(traced, static_argnums=(0, 1, 7, 8))

every_strategy = pytest.mark.parametrize("name", STRATEGIES)
CASES = [(name, "default") for name in STRATEGIES]
CASES += [(name, config) for name in ("star", "pe_subtract", "bald") for config in CONFIGS if config != "default"]
every_case = pytest.mark.parametrize(("name", "config"), CASES)


def pool(seed: int):
    """Base and full measure with distinct values, and availability."""
    rng = np.random.default_rng(seed)
    base, full = (rng.permutation(SIZE) + rng.random(SIZE) / 2 for _ in range(2))
    return base.astype(np.float32), (3 * full).astype(np.float32), rng.random(SIZE) < 0.6


def call(name: str, config: str, key, base, full, available, t=2, function=JITTED):
    strategy = get_strategy(name)
    return function(
        strategy,
        CONFIGS[config],
        key,
        jnp.asarray(base) if strategy.needs_base else None,
        jnp.asarray(full) if strategy.needs_full else None,
        jnp.asarray(available),
        t,
        QUERIES,
        COUNT,
    )


@every_case
def test_picks_are_exact_finite_and_repeatable(name: str, config: str) -> None:
    base, full, available = pool(0)
    key = jax.random.key(1)
    picks, scores = call(name, config, key, base, full, available)
    assert picks.shape == (COUNT,)
    assert picks.dtype == jnp.int32
    assert len(set(picks.tolist())) == COUNT
    assert available[np.asarray(picks)].all()
    assert scores.shape == (SIZE,)
    assert np.isfinite(scores).all()
    again, scores_again = call(name, config, key, base, full, available)
    np.testing.assert_array_equal(again, picks)
    np.testing.assert_array_equal(scores_again, scores)


@every_case
def test_jit_equals_eager_and_compiles_once_a_run(name: str, config: str) -> None:
    base, full, available = pool(1)
    key = jax.random.key(1)
    want_picks, want_scores = call(name, config, key, base, full, available, 0, acquire)
    picks, scores = call(name, config, key, base, full, available, 0)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5, atol=1e-6)
    # Ranks blended at λ = 0.5 can be equal but for rounding, which compilation may change.
    if np.diff(np.sort(np.asarray(scores)[available])).min() > 1e-5 or not get_strategy(name).needs_full:
        np.testing.assert_array_equal(picks, want_picks)

    for t in range(1, 4):
        available[np.asarray(picks)[:3]] = False
        picks, _ = call(name, config, key, base, full, available, t)
    assert TRACED.count((get_strategy(name), CONFIGS[config])) == 1


@every_case
def test_unavailable_entries_have_no_influence(name: str, config: str) -> None:
    base, full, available = pool(2)
    key = jax.random.key(2)
    picks, scores = call(name, config, key, base, full, available)
    for value in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = [np.where(available, values, np.float32(value)) for values in (base, full)]
        got_picks, got_scores = call(name, config, key, *spoilt, available)
        np.testing.assert_array_equal(got_picks, picks)
        np.testing.assert_array_equal(got_scores, scores)


@every_case
def test_permuting_the_pool_permutes_scores_and_picks(name: str, config: str) -> None:
    base, full, available = pool(3)
    key = jax.random.key(3)
    order = np.random.default_rng(3).permutation(SIZE)
    picks, scores = call(name, config, key, base, full, available)
    moved_picks, moved_scores = call(name, config, key, base[order], full[order], available[order])
    np.testing.assert_allclose(moved_scores, np.asarray(scores)[order], rtol=1e-5, atol=1e-6)
    distinct = len(set(np.asarray(scores)[available].tolist())) == available.sum()
    if resolve(get_strategy(name), CONFIGS[config]).selection == "top_k" and distinct:
        np.testing.assert_array_equal(order[np.asarray(moved_picks)], picks)


@every_strategy
def test_key_matters_only_where_chance_does(name: str) -> None:
    base, full, available = pool(4)
    draws = [call(name, "default", jax.random.key(k), base, full, available)[0].tolist() for k in range(5)]
    assert (len({tuple(draw) for draw in draws}) > 1) == (name == "random")


def test_nothing_is_told_of_responses() -> None:
    assert list(inspect.signature(acquire).parameters) == [
        *("strategy", "config", "key", "base", "full", "available", "query_index", "queries", "count")
    ]


@every_strategy
def test_entries_hang_together(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    assert strategy.measure is None or strategy.measure in MEASURES
    for config in CONFIGS.values():
        resolved = resolve(strategy, config)
        assert resolve(resolved, config) == resolved
        assert resolved.measure is None or resolved.measure in MEASURES
    _, full, available = pool(5)
    for model in ("base", "full"):
        if getattr(strategy, f"needs_{model}"):
            given = {"base": full, "full": full, model: None}
            with pytest.raises(ValueError, match=f"needs the measure of the {model} model"):
                acquire(
                    *(strategy, CONFIGS["default"], jax.random.key(0)),
                    *(given["base"], given["full"], jnp.asarray(available), 0, QUERIES, COUNT),
                )


def test_single_model_strategies_rank_by_their_measure() -> None:
    base, full, available = pool(6)
    for values, names in ((full, ["entropy", "pe", "bald", "least_confidence", "margin"]), (base, ["base_only"])):
        want = sorted(np.flatnonzero(available), key=lambda i: -values[i])[:COUNT]
        for name in names:
            assert call(name, "default", jax.random.key(0), base, full, available)[0].tolist() == want


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("star", [0.9, 0.5, 0.1]),
        ("star_constant", [0.5, 0.5, 0.5]),
        ("star_reversed", [0.1, 0.5, 0.9]),
        ("pe_dynamic", [0.9, 0.5, 0.1]),
    ],
)
def test_blends_follow_their_schedule(name: str, weights: list[float]) -> None:
    base, full, available = pool(7)
    scale = NORMALISERS[STRATEGIES[name].normaliser]
    scaled = [np.asarray(scale(jnp.asarray(values), jnp.asarray(available))) for values in (base, full)]
    for t, weight in zip((0, 4, 8), weights, strict=True):
        _, scores = call(name, "default", jax.random.key(0), base, full, available, t)
        np.testing.assert_allclose(scores, weight * scaled[0] + (1 - weight) * scaled[1], rtol=1e-5, atol=1e-6)


def test_subtract_is_full_less_base_on_one_scale() -> None:
    base, full, available = pool(8)
    _, scores = call("pe_subtract", "default", jax.random.key(0), base, full, available)
    scaled = [(v - v[available].min()) / np.ptp(v[available]) for v in (base, full)]
    np.testing.assert_allclose(np.asarray(scores)[available], (scaled[1] - scaled[0])[available], atol=1e-6)


def test_released_arithmetic_leaves_the_full_model_unscaled() -> None:
    base, full, available = pool(9)
    scaled = (base - base[available].min()) / np.ptp(base[available])
    _, blended = call("entropy_dynamic", "released", jax.random.key(0), base, full, available, 3)
    np.testing.assert_allclose(np.asarray(blended)[available], (0.6 * scaled + 0.4 * full)[available], rtol=1e-6)
    _, subtracted = call("entropy_subtract", "released", jax.random.key(0), base, full, available)
    np.testing.assert_allclose(np.asarray(subtracted)[available], (full - scaled)[available], rtol=1e-6)


def test_overrides_apply_where_there_is_something_to_override() -> None:
    config = AcquisitionConfig(reduction="max", normaliser="zscore", schedule="cosine", selection="power")
    star = resolve(get_strategy("star"), config)
    assert (star.measure, star.normaliser, star.schedule, star.selection) == (
        *("token_entropy_max", "zscore", "cosine", "power"),
    )
    assert resolve(get_strategy("star_constant"), config).schedule == "constant"
    assert resolve(get_strategy("star_reversed"), config).schedule == "cosine"
    assert resolve(get_strategy("random"), config) == get_strategy("random")
    entropy = resolve(get_strategy("entropy"), config)
    assert (entropy.normaliser, entropy.schedule) == (None, None)
    gap = Strategy("gap", "", "jensen_gap", "full")
    assert resolve(gap, config).measure == "jensen_gap"
    assert all(resolve(entry, AcquisitionConfig()) == entry for entry in STRATEGIES.values())


def test_monte_carlo_entries() -> None:
    assert {name for name, entry in STRATEGIES.items() if entry.monte_carlo} == {
        *("star", "star_constant", "star_reversed", "bald")
    }


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"names stars, which does not exist; choose from random, .*star"):
        get_strategy("stars")
    with pytest.raises(ConfigError, match=r"acquisition\.normaliser is rank, but acquisition\.arithmetic released"):
        resolve(get_strategy("star"), AcquisitionConfig(arithmetic="released", normaliser="rank"))
    replace = partial(dataclasses.replace, get_strategy("star"))
    for change in ({"schedule": None}, {"normaliser": None}, {"measure": None}, {"selection": "uniform"}):
        with pytest.raises(ValueError, match="parts that do not go with"):
            replace(**change)


@every_case
def test_a_score_that_is_not_finite_is_pinned_to_its_example(name: str, config: str) -> None:
    base, full, available = pool(10)
    bad = np.flatnonzero(available)[[1, 4]]
    without = available.copy()
    without[bad] = False
    key = jax.random.key(10)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = [values.copy() for values in (base, full)]
        for values in spoilt:
            values[bad] = value
        _, scores = call(name, config, key, *spoilt, available)
        if name == "random":
            assert np.isfinite(scores).all()
            continue
        assert np.flatnonzero(~np.isfinite(scores)).tolist() == bad.tolist()
        _, want = call(name, config, key, base, full, without)
        np.testing.assert_array_equal(np.asarray(scores)[without], np.asarray(want)[without])
        with pytest.raises(ScoreError, match=f"^2 of {SIZE} .*: id-{bad[0]}, id-{bad[1]};"):
            check_finite(scores, [f"id-{i}" for i in range(SIZE)])


def test_check_finite_names_the_examples() -> None:
    ids = [f"example-{i}" for i in range(30)]
    scores = np.zeros(30)
    check_finite(scores, ids)
    check_finite(jnp.zeros(30), ids)
    scores[[3, 7]] = np.nan, np.inf
    with pytest.raises(ScoreError, match=r"^2 of 30 .*: example-3, example-7;"):
        check_finite(scores, ids)
    scores[:] = np.nan
    with pytest.raises(ScoreError, match=r"example-9 and 20 more"):
        check_finite(scores, ids)
