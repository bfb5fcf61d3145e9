"""Rotary positions against complex numbers, and each scaling scheme against its paper, a frequency at a time."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.errors import ConfigError
from star_jax.models.rotary import Rope, rope_from_hf, rotate, unrotated

HEAD, ORIGINAL, MOST = 64, 128, 1024


def turned(x: np.ndarray, positions: np.ndarray, frequencies: list[float], factor: float = 1.0) -> np.ndarray:
    """`x` `B×T×heads×d` with its pairs (i, i + m) as complex numbers; entries past the last pair are kept."""
    half = len(frequencies)
    out = x.copy()
    for i, frequency in enumerate(frequencies):
        turn = factor * np.exp(1j * positions * frequency)[..., None]
        pair = (x[..., i] + 1j * x[..., i + half]) * turn
        out[..., i], out[..., i + half] = pair.real, pair.imag
    return out


def plain_frequencies(theta: float, width: int) -> list[float]:
    return [theta ** (-2 * i / width) for i in range(width // 2)]


@pytest.fixture
def theta(rng: np.random.Generator) -> float:
    return float(10 ** rng.uniform(3, 5))


# Angles and rotation.


@pytest.mark.parametrize("width", [None, 6])
def test_rotation_is_a_product_of_complex_numbers(rng: np.random.Generator, theta: float, width: int | None) -> None:
    x, positions = rng.normal(size=(2, 7, 3, 10)), rng.integers(0, 200, (2, 7))
    rope = Rope(theta, factor=1.3, width=width)
    got = rotate(jnp.asarray(x), rope.angles(jnp.asarray(positions), 10))
    want = turned(x, positions, plain_frequencies(theta, width or 10), factor=1.3)
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_array_equal(got[..., width or 10 :], np.float32(x[..., width or 10 :]))


def test_divisors_slow_the_rotation_down(rng: np.random.Generator, theta: float) -> None:
    divisors = rng.uniform(1, 9, 5).tolist()
    np.testing.assert_allclose(Rope(theta, tuple(divisors)).frequencies(10), divided(theta, divisors), rtol=1e-12)


def test_rotated_products_depend_on_the_distance_alone(rng: np.random.Generator) -> None:
    query, key = rng.normal(size=(2, 1, 1, 1, 8))
    here, there, shift = rng.integers(0, 50, 3)

    def product(i: int, j: int) -> float:
        angles = [Rope(100.0).angles(jnp.full((1, 1), place), 8) for place in (i, j)]
        return float(jnp.sum(rotate(jnp.asarray(query), angles[0]) * rotate(jnp.asarray(key), angles[1])))

    assert product(here, there) == pytest.approx(product(here + shift, there + shift), abs=1e-4)


def test_rotation_keeps_the_type() -> None:
    angles = Rope(100.0).angles(jnp.arange(3)[None], 4)
    assert angles[0].dtype == jnp.float32
    assert rotate(jnp.ones((1, 3, 2, 4), jnp.bfloat16), angles).dtype == jnp.bfloat16


def test_unrotated_leaves_everything_as_it_is(rng: np.random.Generator) -> None:
    x, positions = jnp.asarray(rng.normal(size=(2, 7, 3, 10))), jnp.asarray(rng.integers(-1, 10_000, (2, 7)))
    np.testing.assert_array_equal(rotate(x, unrotated(10).angles(positions, 10)), x)


# Scaling schemes.


def read(parameters: dict[str, Any], longest: int | None = None) -> Rope:
    return rope_from_hf(parameters, HEAD, MOST, longest)


def divided(theta: float, divisors: list[float]) -> list[float]:
    plain = plain_frequencies(theta, 2 * len(divisors))
    return [frequency / divisor for frequency, divisor in zip(plain, divisors, strict=True)]


def assert_rotates_by(rope: Rope, frequencies: list[float], factor: float = 1.0) -> None:
    np.testing.assert_allclose(rope.frequencies(HEAD), frequencies, rtol=1e-9)
    assert rope.factor == pytest.approx(factor, rel=1e-9)


def test_default_is_the_plain_rotation(theta: float) -> None:
    assert read({"rope_type": "default", "rope_theta": theta}) == Rope(theta)
    assert read({"rope_theta": theta, "partial_rotary_factor": 1.0, "factor": None}) == Rope(theta)


def test_partial_rotation_has_its_own_frequencies(theta: float) -> None:
    rope = read({"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.75})
    assert rope.width == 48
    assert_rotates_by(rope, plain_frequencies(theta, 48))


def test_linear_counts_positions_in_fractions(rng: np.random.Generator, theta: float) -> None:
    """Chen et al. 2023, arXiv 2306.15595, equation 4: position m stands at m / s."""
    factor = float(rng.uniform(2, 9))
    positions = jnp.asarray(rng.integers(0, 100, (1, 5)))
    got = read({"rope_type": "linear", "rope_theta": theta, "factor": factor}).angles(positions, HEAD)
    want = Rope(theta).angles(positions / factor, HEAD)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_llama3_is_the_loop_of_its_reference(rng: np.random.Generator, theta: float) -> None:
    """Llama 3.1's published code: by wavelength, kept, divided by the factor, or something between."""
    factor, low, high = float(rng.uniform(2, 32)), 1.0, float(rng.uniform(2, 5))
    parameters = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    rope = read(
        {"rope_type": "llama3", "rope_theta": theta, "original_max_position_embeddings": ORIGINAL, **parameters}
    )
    want, kinds = [], set()
    for frequency in plain_frequencies(theta, HEAD):
        wavelength = 2 * math.pi / frequency
        if wavelength < ORIGINAL / high:
            kinds.add("kept")
            want.append(frequency)
        elif wavelength > ORIGINAL / low:
            kinds.add("divided")
            want.append(frequency / factor)
        else:
            kinds.add("between")
            smooth = (ORIGINAL / wavelength - low) / (high - low)
            want.append((1 - smooth) * frequency / factor + smooth * frequency)
    assert {"kept", "divided"} <= kinds
    assert_rotates_by(rope, want)


@pytest.mark.parametrize(
    ("longest", "chosen"), [(None, "short_factor"), (ORIGINAL, "short_factor"), (ORIGINAL + 1, "long_factor")]
)
def test_longrope_has_a_list_for_short_and_one_for_long(
    rng: np.random.Generator, theta: float, longest: int | None, chosen: str
) -> None:
    """Ding et al. 2024, arXiv 2402.13753, and the attention factor of Phi-3's published code."""
    lists = {name: rng.uniform(1, 9, HEAD // 2).tolist() for name in ("short_factor", "long_factor")}
    parameters = {"rope_type": "longrope", "rope_theta": theta, "original_max_position_embeddings": ORIGINAL, **lists}
    want = divided(theta, lists[chosen])
    assert_rotates_by(read(parameters, longest), want, math.sqrt(1 + math.log(MOST / ORIGINAL, ORIGINAL)))
    stretched = read(parameters | {"factor": 5.0}, longest)
    assert_rotates_by(stretched, want, math.sqrt(1 + math.log(5, ORIGINAL)))
    assert_rotates_by(read(parameters | {"factor": 5.0, "attention_factor": 1.19}, longest), want, 1.19)
    unstretched = read(parameters | {"original_max_position_embeddings": MOST})
    assert_rotates_by(unstretched, divided(theta, lists["short_factor"]), 1.0)


def yarn_by_loops(theta: float, factor: float, fast: float, slow: float, truncate: bool) -> list[float]:
    """Peng et al. 2023, arXiv 2309.00071, section 3.2, with the ramp of its published code, linear in the pair.

    Pairs that make `fast` turns or more over the original context are kept, those that make `slow` or fewer are
    interpolated. Where the ends are found among whole pairs, by looking at each; else on a fine grid.
    """

    def turns(pair: float) -> float:
        return ORIGINAL * theta ** (-2 * pair / HEAD) / (2 * math.pi)

    grid = [i / 20_000 for i in range(20_000 * (HEAD // 2))] if not truncate else list(range(HEAD))
    low = max((pair for pair in grid if turns(pair) >= fast), default=0)
    high = min((pair for pair in grid if turns(pair) <= slow), default=HEAD - 1)
    frequencies = []
    for pair, frequency in enumerate(plain_frequencies(theta, HEAD)):
        interpolated = min(max((pair - low) / (high - low), 0), 1)
        frequencies.append(interpolated * frequency / factor + (1 - interpolated) * frequency)
    return frequencies


@pytest.mark.parametrize("bounds", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"beta_fast": None}])
@pytest.mark.parametrize("truncate", [None, True, False])
def test_yarn_interpolates_by_parts(
    rng: np.random.Generator, theta: float, bounds: dict[str, float | None], truncate: bool | None
) -> None:
    factor = float(rng.uniform(2, 9))
    fast, slow = bounds.get("beta_fast") or 32, bounds.get("beta_slow") or 1
    parameters = {"rope_type": "yarn", "rope_theta": theta, "factor": factor, **bounds}
    parameters |= {"original_max_position_embeddings": ORIGINAL} | ({} if truncate is None else {"truncate": truncate})
    rope = read(parameters)
    want = yarn_by_loops(theta, factor, fast, slow, truncate is not False)
    np.testing.assert_allclose(rope.frequencies(HEAD), want, rtol=1e-9 if truncate is not False else 1e-3)
    assert want[0] == 1
    assert want[-1] == pytest.approx(plain_frequencies(theta, HEAD)[-1] / factor)
    # Equation 22: the logits grow by (0.1 ln s + 1)², so queries and keys by its root.
    assert rope.factor == pytest.approx(0.1 * math.log(factor) + 1)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"factor": None}, 0.1 * math.log(MOST / ORIGINAL) + 1),
        ({"factor": 1.0}, 1.0),
        ({"factor": 4.0, "attention_factor": 0.7}, 0.7),
        ({"factor": 4.0, "mscale": 0.5}, 0.1 * math.log(4) + 1),
        ({"factor": 4.0, "mscale": 0.5, "mscale_all_dim": 0.8}, (0.05 * math.log(4) + 1) / (0.08 * math.log(4) + 1)),
    ],
)
def test_yarn_scales_queries_and_keys(theta: float, given: dict[str, float | None], want: float) -> None:
    common = {"rope_type": "yarn", "rope_theta": theta, "original_max_position_embeddings": ORIGINAL}
    assert read(common | given).factor == pytest.approx(want)


# What is wrong with a config.


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'; this decoder knows default, linear, llama3"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, "has 'mscale', which this decoder does not know for"),
        ({"rope_type": "linear"}, "lacks 'factor', which linear needs"),
        ({"rope_type": "yarn", "factor": 2.0}, "lacks 'original_max_position_embeddings', which yarn needs"),
        (
            {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 8, "low_freq_factor": 1.0},
            "lacks 'high_freq_factor', which llama3 needs",
        ),
        (
            {"rope_type": "longrope", "original_max_position_embeddings": 8, "short_factor": [1.0, 2.0]},
            "has 2 factors for longrope; 32 are expected",
        ),
        ({"rope_type": "longrope", "original_max_position_embeddings": 8}, "lacks 'short_factor', which longrope"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read({"rope_theta": 1e4, **parameters})
