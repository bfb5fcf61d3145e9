"""Which labelled examples are trained on, and which are held out to measure on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from star_jax.data.examples import Example
from star_jax.errors import ConfigError


def hold_out(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Examples for training, and about `fraction` of them for validation.

    An example's id decides, so that it stays on its side as the labelled set grows, whatever the seed.

    Raises:
      ConfigError: nothing is left to train on.
    """
    if not examples:
        raise ConfigError("there is nothing to train on: every example that was picked was skipped; label at least one")
    held = [_share(example.id) < fraction for example in examples]
    training = [example for example, out in zip(examples, held, strict=True) if not out]
    if not training:
        raise ConfigError(
            f"training.validation_fraction {fraction} leaves none of {len(examples)} labelled examples to train on; "
            "lower it, or label more at first (loop.initial_labels)"
        )
    return training, [example for example, out in zip(examples, held, strict=True) if out]


def _share(name: str) -> float:
    """A number in [0, 1) that looks random and belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
