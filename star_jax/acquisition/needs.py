"""What a strategy may need of a pool: measures, vectors, groups, probabilities; and vectors of target prompts.

Shapes: `N` pool, `D` width of an embedding, `W` width of a sketch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from star_jax.acquisition.uncertainty import ANSWER_MEASURES, MEASURES
from star_jax.errors import ConfigError

Which = Literal["base", "full"]
"""The model without the adapter of the last round, or with it."""


class _Key:
    """A key of mappings that are trees of JAX, which sorts them."""

    def __lt__(self, other: object) -> bool:
        return repr(self) < repr(other)


@dataclass(frozen=True)
class Measure(_Key):
    """An uncertainty measure, `N` float32; larger is more uncertain.

    Attributes:
      name: one of `acquisition.uncertainty.MEASURES`, of one answer, or of `ANSWER_MEASURES`, of several drawn ones.
      model: `full` is the fine-tuned model, `base` the one before.
      samples: whether it is averaged over Monte-Carlo dropout samples; of the full model only.

    Raises:
      ConfigError: there is no such measure, or samples of the base model or of drawn answers were asked for.

    Example:
      >>> Measure("token_entropy").model
      'full'
    """

    name: str
    model: Which = "full"
    samples: bool = False

    def __post_init__(self) -> None:
        if self.name not in (*MEASURES, *ANSWER_MEASURES):
            raise ConfigError(f"{self.name!r} is no measure; choose from {', '.join((*MEASURES, *ANSWER_MEASURES))}")
        if self.model not in ("base", "full"):
            raise ConfigError(f"a measure of model {self.model!r}; choose base or full")
        if self.samples and self.model == "base":
            raise ConfigError("dropout acts on the adapter, so the base model has no samples; ask for the full model's")
        if self.samples and self.of_answers:
            raise ConfigError(
                f"{self.name} is of answers that are drawn, and not averaged over passes; leave out samples"
            )

    @property
    def of_answers(self) -> bool:
        """Whether it is of several drawn answers, and not of the tokens of one."""
        return self.name in ANSWER_MEASURES


@dataclass(frozen=True)
class Embedding(_Key):
    """A vector for each prompt, `N×D` float32: hidden states of the last layer, after its norm.

    Only the prompt is read, so an embedding knows no response, the model's own included.

    Attributes:
      model: `base`, whose embeddings stay the same over a run, or `full`.
      pooling: `mean` over the prompt's tokens, `weighted` by their positions 1, 2, …, or that of its `last` token.
      projection: width of a random Gaussian projection (Johnson & Lindenstrauss 1984); None keeps the model's width.

    Raises:
      ConfigError: a value that is none of these.

    Example:
      >>> Embedding(projection=64).pooling
      'mean'
    """

    model: Which = "base"
    pooling: Literal["mean", "weighted", "last"] = "mean"
    projection: int | None = None

    def __post_init__(self) -> None:
        if self.model not in ("base", "full") or self.pooling not in ("mean", "weighted", "last"):
            raise ConfigError(
                f"an embedding of model {self.model!r} with pooling {self.pooling!r}; choose base or full, and "
                "mean, weighted or last"
            )
        if self.projection is not None and self.projection < 1:
            raise ConfigError(f"an embedding's projection is {self.projection}; it must be at least 1, or None")


@dataclass(frozen=True)
class GradientSketch(_Key):
    """A short vector for each example's gradient, `N×W` float32: that of the negative log-likelihood of the model's own
    answer, summed over its tokens, with respect to the adapter.

    The gradient that an example would have if its guessed label were right, as BADGE takes it (Ash et al. 2020, arXiv
    1906.03671), of the parameters that are trained. A count sketch makes it short: inner products of two sketches are
    those of the gradients on average, and so are lengths. Where the model answers from a closed set, the answer is the
    likeliest.

    Attributes:
      model: `full`; or `base`, where the adapter is the one that a training starts from, whose B is 0.
      width: W.

    Raises:
      ConfigError: a value that is none of these.

    Example:
      >>> GradientSketch(width=64).model
      'full'
    """

    model: Which = "full"
    width: int = 512

    def __post_init__(self) -> None:
        if self.model not in ("base", "full"):
            raise ConfigError(f"a gradient sketch of model {self.model!r}; choose base or full")
        if self.width < 1:
            raise ConfigError(f"a gradient sketch's width is {self.width}; it must be at least 1")


@dataclass(frozen=True)
class Targets(_Key):
    """Vectors of the target prompts of `acquisition.target_file`, `T×D` float32: a row a target, not an example.

    Attributes:
      embedding: how they are embedded; the same as the pool's, so that they compare.

    Example:
      >>> Targets(Embedding(projection=64)).model
      'base'
    """

    embedding: Embedding

    @property
    def model(self) -> Which:
        """Of the embedding."""
        return self.embedding.model


@dataclass(frozen=True)
class Group(_Key):
    """Number of the group that an example belongs to, `N` int32; examples of one group have the same.

    Attributes:
      by: `data`, what the data say of an example's kind (the task's group field, all of one group where there is none),
        known of all examples; or `answer`, the answer that the fine-tuned model gives, 0 where it was not asked.

    Raises:
      ConfigError: another kind of group.

    Example:
      >>> Group("answer").model
      'full'
    """

    by: Literal["data", "answer"] = "data"

    def __post_init__(self) -> None:
        if self.by not in ("data", "answer"):
            raise ConfigError(f"groups by {self.by!r}; choose data or answer")

    @property
    def model(self) -> Which:
        """Whose pass gives it; of the data's, it is nobody's, and known from the start as what is of the base model."""
        return "base" if self.by == "data" else "full"


@dataclass(frozen=True)
class Probabilities(_Key):
    """Probability of each answer of a closed set under each Monte-Carlo sample of the full model, `N×K×C` float32.

    NaN where an example was not scored, as a measure.
    """

    @property
    def model(self) -> Which:
        """The one that has samples."""
        return "full"


Feature = Measure | Embedding | GradientSketch | Targets | Group | Probabilities
