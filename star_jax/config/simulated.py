"""The annotator that is simulated, for experiments."""

from __future__ import annotations

from dataclasses import dataclass

from star_jax.config.checks import SEEDS, require, require_finite


@dataclass(frozen=True)
class SimulatedConfig:
    """What the annotator `simulated` does to the pool's own responses.

    Example:
      >>> SimulatedConfig(error_rate=0.1, skip_rate=0.05).cost
      1.0
    """

    error_rate: float = 0.0
    """Share of the answers that are wrong: another of the answers, or that of another row of the pool."""
    skip_rate: float = 0.0
    """Share of the examples that the annotator says cannot be labelled."""
    cost: float = 1.0
    """Of an answer, a skip included, in a unit of yours."""
    seed: int = 0
    """Of the annotator. What it says of an example depends on the example's id and this alone."""

    def __post_init__(self) -> None:
        require_finite("simulated", self)
        for name in ("error_rate", "skip_rate"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"simulated.{name} is {value}; it must be in [0, 1]")
        require(self.cost >= 0, f"simulated.cost is {self.cost}; it must not be negative")
        require(0 <= self.seed < SEEDS, f"simulated.seed is {self.seed}; it must be from 0 to {SEEDS - 1}")


def check_simulated(annotator: str, simulated: SimulatedConfig) -> None:
    """Refuses a section beside an annotator that does not read it.

    Raises:
      ConfigError: `simulated` differs from the default and the annotator is another one.
    """
    require(
        annotator == "simulated" or simulated == SimulatedConfig(),
        f"simulated is the section of annotator simulated, and annotator is {annotator}; leave it out, or change the "
        "annotator",
    )
