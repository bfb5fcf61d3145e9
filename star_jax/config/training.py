"""Fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from star_jax.config.checks import require, require_finite

MOST_EPOCHS = 10_000
"""More than anybody has use for; a slip of the finger would take years."""

MOST_STEPS = 1_000_000
"""The same for steps."""


@dataclass(frozen=True)
class TrainingConfig:
    """Fine-tuning of one fresh adapter on everything labelled so far.

    Example:
      >>> TrainingConfig(epochs=1, confidence_penalty=0.1).learning_rate
      0.00015
    """

    learning_rate: float = 1.5e-4
    """Peak rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls to 0, over the steps really taken."""
    warmup_fraction: float = 0.0
    """Share of the steps over which the rate rises from 0."""
    decay_fraction: float = 1.0
    """Share of the steps, at the end, over which the rate falls; as far as the warm-up leaves them."""
    epochs: int = 3
    """Passes over the labelled set."""
    min_steps: int = 0
    """Steps to take at least: a labelled set that gives fewer is passed over more often."""
    average_fraction: float = 0.0
    """Share of the steps, at the end, over whose weights the adapter is the mean (Izmailov et al. 2018); 0 for the
    weights after the last step."""
    batch_size: int = 8
    """Labelled rows a step, over all devices."""
    rematerialise: bool = False
    """Whether the backward pass computes each layer anew instead of keeping what it needs of it: less memory, more
    time."""
    adam_b1: float = 0.9
    """Decay of Adam's first moment."""
    adam_b2: float = 0.999
    """Decay of Adam's second moment."""
    gradient_clip: float | None = 1.0
    """Largest global norm of the gradient; none to switch clipping off."""
    decay_a: float = 0.0
    """Decoupled weight decay on A (AdamW)."""
    decay_b: float = 0.5
    """Decoupled weight decay on B (AdamW), the released code's form of L2 on B."""
    l2_b: float = 0.0
    """Weight beta of the explicit loss term beta * ||B||^2."""
    confidence_penalty: float = 0.0
    """Weight of the entropy, in nats, that is subtracted from the loss (Pereyra et al. 2017)."""
    entropy_floor: float | None = None
    """Hinge form: only entropy missing below this many nats is penalised; none for the plain form."""
    label_smoothing: float = 0.0
    """Share of the target mass spread evenly over the vocabulary."""
    validation_fraction: float = 0.0
    """Share of the labelled set that is held out of training and measured on; an example stays on its side."""
    replay: str | None = None
    """JSONL of already mastered rows mixed into each batch; `embedded:skills` for the shipped file."""
    replay_rows: int = 0
    """Replay rows a step; they are not labels and are not counted as such."""

    def __post_init__(self) -> None:
        require_finite("training", self)
        require(self.learning_rate > 0, f"training.learning_rate is {self.learning_rate}; it must be positive")
        require(self.epochs >= 1, f"training.epochs is {self.epochs}; it must be at least 1")
        require(self.epochs <= MOST_EPOCHS, f"training.epochs is {self.epochs}; it must be at most {MOST_EPOCHS}")
        require(
            0 <= self.min_steps <= MOST_STEPS,
            f"training.min_steps is {self.min_steps}; it must be from 0 to {MOST_STEPS}",
        )
        require(self.batch_size >= 1, f"training.batch_size is {self.batch_size}; it must be at least 1")
        for name in ("adam_b1", "adam_b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"training.{name} is {value}; it must be in [0, 1)")
        for name in ("warmup_fraction", "decay_fraction", "average_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"training.{name} is {value}; it must be in [0, 1]")
        clip, floor = self.gradient_clip, self.entropy_floor
        require(clip is None or clip > 0, f"training.gradient_clip is {clip}; it must be positive, or none")
        require(floor is None or floor > 0, f"training.entropy_floor is {floor}; it must be positive, or none")
        require(
            floor is None or self.confidence_penalty > 0,
            "training.entropy_floor does nothing at training.confidence_penalty 0; set both or neither",
        )
        for name in ("decay_a", "decay_b", "l2_b", "confidence_penalty"):
            value = getattr(self, name)
            require(value >= 0, f"training.{name} is {value}; it must not be negative")
        for name in ("label_smoothing", "validation_fraction"):
            value = getattr(self, name)
            require(0 <= value < 1, f"training.{name} is {value}; it must be in [0, 1)")
        require(self.replay_rows >= 0, f"training.replay_rows is {self.replay_rows}; it must not be negative")
        require(
            (self.replay_rows > 0) == (self.replay is not None),
            "training.replay and training.replay_rows go together; set both or neither",
        )

    def epochs_of(self, rows: int) -> int:
        """Passes over a labelled set of so many rows, at least one: `epochs`, or what `min_steps` takes."""
        return max(self.epochs, math.ceil(self.min_steps / math.ceil(rows / self.batch_size)))
