"""Rotary positions: the frequencies of each scaling scheme, their angles, and the rotation.

Su et al. 2021, arXiv 2104.09864. A scaling scheme is a divisor for each frequency and a factor on the cosines and
sines, so that the decoder knows one kind of rotation only.

Shapes: `B` batch, `T` tokens, `d` head width, `m` rotated pairs of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.errors import ConfigError

Array = jax.Array
Angles = tuple[Array, ...]
"""Cosines and sines, and what queries are multiplied by besides, where there is such a factor."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions of a layer.

    Attributes:
      theta: base wavelength; frequency i is theta^(-i / m) / divisors[i], radians a position.
      divisors: `m` numbers; empty for all ones.
      factor: multiplies cosines and sines.
      width: entries of a head that are rotated, from the first on; None for all of them.
      stretch: (β, n): queries at position p are multiplied by 1 + β · ln(1 + ⌊p / n⌋), so that attention stays sharp
        far behind the n positions of pretraining (Llama 4); None for no such factor.
    """

    theta: float = 10000.0
    divisors: tuple[float, ...] = ()
    factor: float = 1.0
    width: int | None = None
    stretch: tuple[float, float] | None = None

    def frequencies(self, head_dim: int) -> np.ndarray:
        """Frequencies `m`, radians a position."""
        pairs = (self.width or head_dim) // 2
        return self.theta ** (-np.arange(pairs) / pairs) / (np.asarray(self.divisors) if self.divisors else 1.0)

    def angles(self, positions: Array, head_dim: int) -> Angles:
        """Cosines and sines `B×T×m`, float32, at `positions` `B×T`; and the factor of queries `B×T×1`, if there is."""
        turned = positions[..., None].astype(jnp.float32) * jnp.asarray(self.frequencies(head_dim), jnp.float32)
        angles = (jnp.cos(turned) * self.factor, jnp.sin(turned) * self.factor)
        if self.stretch is None:
            return angles
        beta, most = self.stretch
        return *angles, 1 + beta * jnp.log1p(jnp.floor(positions[..., None].astype(jnp.float32) / most))


def unrotated(head_dim: int) -> Rope:
    """A layer without rotary positions, as a rotation by angle 0."""
    return Rope(divisors=(math.inf,) * (head_dim // 2))


def rotate(x: Array, angles: Angles, interleaved: bool = False) -> Array:
    """Rotates `x` `B×T×heads×d`; the pairs are (i, i + m), as most checkpoints have them, or (2i, 2i + 1)."""
    cos, sin = (part[:, :, None, :] for part in angles[:2])
    width = 2 * cos.shape[-1]
    rotated = x[..., :width].astype(jnp.float32)
    if interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
    halves = [first * cos - second * sin, second * cos + first * sin]
    whole = jnp.stack(halves, axis=-1).reshape(rotated.shape) if interleaved else jnp.concatenate(halves, axis=-1)
    turned = whole.astype(x.dtype)
    return turned if width == x.shape[-1] else jnp.concatenate([turned, x[..., width:]], axis=-1)


def stretched(query: Array, angles: Angles) -> Array:
    """Queries `B×T×H×d` times their factor, where there is one."""
    return query if len(angles) == 2 else query * angles[2][:, :, None, :].astype(query.dtype)


def rope_from_hf(
    parameters: Mapping[str, Any], head_dim: int, most_positions: int, longest: int | None, extra: Sequence[str] = ()
) -> Rope:
    """Reads the `rope_parameters` of a Hugging Face config.

    Args:
      parameters: with `rope_type`, `rope_theta` and what the type needs.
      head_dim: d.
      most_positions: the model's `max_position_embeddings`.
      longest: tokens of the longest sequence that will be read. LongRoPE has one set of divisors for sequences of
        up to `original_max_position_embeddings` and one for longer ones. It is chosen here, once: a score must not
        depend on the batch it rides in, nor a cached key on how long its sequence has grown since.
      extra: parameters that the family reads, whatever the type.

    Raises:
      ConfigError: another type, or a parameter that it needs is missing or unknown.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in _SCHEMES:
        raise ConfigError(f"rope_type is {kind!r}; this decoder knows {', '.join(_SCHEMES)}")
    scheme, known = _SCHEMES[kind]
    unknown = [
        name for name, value in parameters.items() if name in set(_OTHERS) - {*known, *extra} and value is not None
    ]
    if unknown:
        raise ConfigError(f"rope_parameters has {unknown[0]!r}, which this decoder does not know for {kind}")
    for name in ("rope_theta", "factor", "original_max_position_embeddings"):
        value = parameters.get(name)
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ConfigError(f"rope_parameters has {name} {value!r}; a positive number is expected")
    width = int(head_dim * (parameters.get("partial_rotary_factor") or 1.0))
    plain = Rope(float(parameters["rope_theta"]), width=None if width == head_dim else width)
    values = {"most_positions": most_positions, "longest": longest or 0, **parameters}
    try:
        divisors, factor = scheme(plain.frequencies(head_dim), plain.theta, values)
    except KeyError as error:
        raise ConfigError(f"rope_parameters lacks {error}, which {kind} needs") from None
    if len(divisors) not in (0, width // 2):
        raise ConfigError(f"rope_parameters has {len(divisors)} factors for {kind}; {width // 2} are expected")
    beta, most = parameters.get("llama_4_scaling_beta"), parameters.get("original_max_position_embeddings")
    stretch = None
    if beta:
        if most is None:
            raise ConfigError("rope_parameters has llama_4_scaling_beta and lacks original_max_position_embeddings")
        stretch = (float(beta), float(most))
    return Rope(plain.theta, tuple(map(float, divisors)), float(factor), plain.width, stretch)


Divisors = tuple[Any, float]


def _default(frequencies: np.ndarray, theta: float, values: Mapping[str, Any]) -> Divisors:
    return (), 1.0


def _linear(frequencies: np.ndarray, theta: float, values: Mapping[str, Any]) -> Divisors:
    return np.full(len(frequencies), float(values["factor"])), 1.0


def _llama3(frequencies: np.ndarray, theta: float, values: Mapping[str, Any]) -> Divisors:
    """Long wavelengths are stretched, short ones kept, those between blended (Llama 3.1)."""
    low, high = float(values["low_freq_factor"]), float(values["high_freq_factor"])
    turns = values["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / values["factor"]), 1.0


def _longrope(frequencies: np.ndarray, theta: float, values: Mapping[str, Any]) -> Divisors:
    """Ding et al. 2024, arXiv 2402.13753."""
    original = values["original_max_position_embeddings"]
    stretch = values.get("factor") or values["most_positions"] / original
    factor = values.get("attention_factor")
    if factor is None:
        factor = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return values["long_factor" if values["longest"] > original else "short_factor"], factor


def _yarn(frequencies: np.ndarray, theta: float, values: Mapping[str, Any]) -> Divisors:
    """Peng et al. 2023, arXiv 2309.00071, section 3.2 and equation 22."""
    original = values["original_max_position_embeddings"]
    stretch = values.get("factor") or values["most_positions"] / original
    pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        """The pair that makes so many turns over the original context, counted in fractions."""
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(values.get("beta_fast") or 32), pair_of(values.get("beta_slow") or 1)
    if values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    kept = 1 - np.clip((np.arange(pairs) - low) / (high - low if high != low else 0.001), 0, 1)
    return 1 / (kept + (1 - kept) / stretch), _yarn_factor(stretch, values)


def _yarn_factor(stretch: float, values: Mapping[str, Any]) -> float:
    def magnitude(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(stretch) + 1 if stretch > 1 else 1.0

    given, own, whole = (values.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return given
    return magnitude(own) / magnitude(whole) if own and whole else magnitude()


_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "max_position_embeddings")
_STRETCHED = ("factor", "original_max_position_embeddings")
_SCHEMES = {
    "default": (_default, _STRETCHED),
    "linear": (_linear, _STRETCHED),
    "llama3": (_llama3, (*_STRETCHED, "low_freq_factor", "high_freq_factor")),
    "longrope": (_longrope, (*_STRETCHED, "short_factor", "long_factor", "attention_factor")),
    "yarn": (
        _yarn,
        (*_STRETCHED, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
"""Type -> its divisors, and the parameters that it reads."""

_OTHERS = ("llama_4_scaling_beta", *(name for _, known in _SCHEMES.values() for name in known))
"""Parameters with a meaning for some type; for one that does not read them, they are a contradiction."""

KNOWN_PARAMETERS = frozenset((*_COMMON, *_OTHERS))
"""Parameters that are looked at. No rotary code of Transformers reads any other."""
