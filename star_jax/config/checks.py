"""What sections refuse: a condition that does not hold, numbers that are not finite, counts beyond any."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from star_jax.errors import ConfigError

SEEDS = 2**32
"""Seeds are smaller than this: JAX's keys would be those of smaller ones again."""

WHOLE = 2**31
"""Whole numbers of a configuration are smaller than this, for counts on devices have 32 bits."""


def require(condition: bool, message: str) -> None:
    """Raises `ConfigError` with a message where a condition does not hold."""
    if not condition:
        raise ConfigError(message)


def require_finite(section: str, config: Any) -> None:
    """Refuses numbers of a section that are not finite."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, float) and not math.isfinite(value):
            otherwise = ", or none" if "None" in str(entry.type) else ""
            raise ConfigError(f"{section}.{entry.name} is {value}; it must be a finite number{otherwise}")


def require_whole(section: str, config: Any) -> None:
    """Refuses whole numbers that are larger than any count."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, int) and value >= WHOLE:
            said = str(value) if value < 10**20 else "of more than 20 digits"
            raise ConfigError(f"{section}.{entry.name} is {said}; it must be less than {WHOLE}")
