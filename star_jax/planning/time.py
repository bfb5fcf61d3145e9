"""How long a program takes: a range from operations and traffic, with shares of the peaks that are stated here.

The roofline (Williams et al. 2009): a batch takes no less than the slowest of computing, reading memory and sending
takes. At best the three overlap and reach the upper shares, at worst they follow one another and reach the lower ones.
"""

from __future__ import annotations

from typing import NamedTuple

from star_jax.planning.machines import Chip
from star_jax.planning.work import Work


class Shares(NamedTuple):
    """Shares of a peak that programs reach, from a bad case to a good one."""

    flops: tuple[float, float]
    bandwidth: tuple[float, float]
    link: tuple[float, float]


REACHED = {
    "tpu": Shares((0.30, 0.65), (0.50, 0.85), (0.40, 0.85)),
    "gpu": Shares((0.25, 0.60), (0.50, 0.85), (0.40, 0.80)),
    # Of what large products and copies were measured to take on this machine.
    "cpu": Shares((0.30, 0.90), (0.30, 0.90), (0.30, 0.90)),
}
"""Kind of chip -> shares of its peaks; assumed, not measured."""

BATCH_SECONDS = {"tpu": (0.0, 0.005), "gpu": (0.0, 0.005), "cpu": (0.0, 0.005)}
"""Kind of chip -> what a batch takes besides, on the host."""

CALIBRATED = (0.75, 1.5)
"""Bounds of a program's time around that of the formula, times what one program was measured to take of it."""


class Seconds(NamedTuple):
    """A range."""

    low: float
    high: float

    def times(self, factor: float) -> Seconds:
        """Both ends."""
        return Seconds(self.low * factor, self.high * factor)

    def plus(self, other: Seconds) -> Seconds:
        """The sums."""
        return Seconds(self.low + other.low, self.high + other.high)


def seconds_of(low: Work, high: Work, chip: Chip, float32: bool, calibration: float | None = None) -> Seconds:
    """Seconds of a batch.

    Args:
      low: its work at the least.
      high: its work at the most, of a generation whose answers may be as long as the limit.
      chip: that does it.
      float32: whether products are of float32.
      calibration: seconds that a program was measured to take, over those of `ideal`; None where none was.
    """
    if calibration is not None:
        down, up = CALIBRATED
        return Seconds(down * calibration * ideal(low, chip, float32), up * calibration * ideal(high, chip, float32))
    shares = REACHED[chip.kind]
    best = max(_each(low, chip, float32, [share[1] for share in shares]))
    worst = sum(_each(high, chip, float32, [share[0] for share in shares]))
    return Seconds(best + BATCH_SECONDS[chip.kind][0], worst + BATCH_SECONDS[chip.kind][1])


def ideal(work: Work, chip: Chip, float32: bool) -> float:
    """Seconds at the peaks, one after another."""
    return sum(_each(work, chip, float32, (1.0, 1.0, 1.0)))


def _each(work: Work, chip: Chip, float32: bool, shares: tuple[float, ...] | list[float]) -> tuple[float, float, float]:
    """Seconds of computing, of reading and writing memory, and of sending."""
    peak = chip.flops_float32 if float32 else chip.flops
    flops, bandwidth, link = shares
    sent = sum(work.sent.values())
    return work.flops / (peak * flops), work.moved / (chip.bandwidth * bandwidth), sent / (chip.link * link)
