"""The frozen base model, and the adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from star_jax.config.checks import require, require_finite

DropoutMode = Literal["off", "shared", "tied", "per_token"]

LEAST_DROPOUT = 1e-6
"""Least probability other than 0 that masks are drawn with, and that of 1 less the greatest."""


@dataclass(frozen=True)
class ModelConfig:
    """The frozen base model."""

    path: str = "embedded:skills"
    """Hugging Face folder or hub name; `embedded:skills` is the small model that ships with the package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights and of products; softmax, norms, losses and the adapter's own copy are float32."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Of the frozen projections, made when they are loaded; the adapter on top is not quantised (QLoRA)."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the model's config.json that are not known here and known to you to be harmless, comma separated."""
    adapter: str | None = None
    """PEFT folder of a LoRA to start from: base and adapter together are then the model that is scored first, and each
    training continues from it instead of a fresh adapter. Rank, alpha, targets and init are the folder's. Weight decay
    pulls towards the bare base all the same; set training.decay_b and training.l2_b to 0 to keep what it knows."""


@dataclass(frozen=True)
class LoraConfig:
    """The adapter: W x + (alpha / rank) B A dropout(x).

    Example:
      >>> LoraConfig(rank=8, targets=("q_proj", "v_proj")).alpha
      16.0
    """

    rank: int = 64
    """Inner width r of the two factors."""
    alpha: float = 16.0
    """Numerator of the scale alpha / rank."""
    dropout: float = 0.1
    """Probability that an entry of A's input is dropped."""
    training_dropout: DropoutMode = "per_token"
    """Masks in training: off, one per token (as PEFT), one per row shared by its tokens (tied), or one per step shared
    by its rows. Projections that read the same input share its mask."""
    rslora: bool = False
    """Scale alpha / sqrt(rank) instead of alpha / rank (rsLoRA)."""
    targets: tuple[str, ...] = ("all-linear",)
    """Modules that get an adapter, comma separated: all-linear, names or ends of paths (q_proj, layers.3.mlp.up_proj),
    or regular expressions for whole paths."""
    init: Literal["kaiming_uniform", "gaussian"] = "kaiming_uniform"
    """Initial A: PEFT's default U(-1/sqrt(in), 1/sqrt(in)), or Gaussian with variance 1/rank. B always starts at 0."""

    def __post_init__(self) -> None:
        require_finite("lora", self)
        require(self.rank >= 1, f"lora.rank is {self.rank}; it must be at least 1")
        require(self.alpha > 0, f"lora.alpha is {self.alpha}; it must be positive")
        require(
            self.dropout == 0 or LEAST_DROPOUT <= self.dropout <= 1 - LEAST_DROPOUT,
            f"lora.dropout is {self.dropout}; it must be 0 for none, or from {LEAST_DROPOUT} to {1 - LEAST_DROPOUT}",
        )
        require(bool(self.targets), "lora.targets is empty; name at least one module, or all-linear")
