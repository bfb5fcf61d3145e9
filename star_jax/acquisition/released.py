"""The released STAR code's way of blending: the base model's uncertainty on [0, 1], the full model's as a raw sum.

Its base term is at most 1 nat against hundreds, so that long responses win at every t. It is here for reproduction,
as the scale `acquisition.normaliser released`; former configurations ask for it by `acquisition.arithmetic: released`.

Shapes: N pool.
"""

from __future__ import annotations

from jax import Array

from star_jax.errors import ConfigError

RELEASED = "released"
"""Name of the scale."""


def unscaled(values: Array, available: Array) -> Array:
    """`N` values as they are, in nats: what the released code does with the full model's."""
    return values


def check_has_released_form(strategy: str, scale: str, asked: str | None) -> None:
    """Refuses the released scale for a strategy that the released code does not have.

    Raises:
      ConfigError: naming the strategy, and those that can be used.
    """
    if asked == RELEASED:
        raise ConfigError(
            f"strategy {strategy} blends on a {scale} scale, which the released code does not have; leave out "
            "acquisition.normaliser released (formerly acquisition.arithmetic), or choose entropy_dynamic or pe_dynamic"
        )
