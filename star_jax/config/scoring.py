"""What the models say, and how it is measured: scoring, generation, what is picked by it, evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from star_jax.config.checks import require, require_finite

Answers = Literal["generated", "candidates", "reference"]
JudgedAnswers = Literal["auto", "generated", "candidates"]
Posterior = Literal["dropout", "tfb", "laplace", "none"]
Reduction = Literal["sum", "mean", "max"]

MOST_SAMPLES, MOST_BINS = 10_000, 10_000
"""More Monte-Carlo samples or bins than anybody has use for; a slip of the finger would take years."""


@dataclass(frozen=True)
class ScoringConfig:
    """How the pool is scored.

    Example:
      >>> ScoringConfig(mc_samples=5).answers
      'generated'
    """

    answers: Answers = "generated"
    """What is scored: the model's own greedy response, a closed answer set, or gold (an oracle)."""
    mc_samples: int = 3
    """Passes K for the strategies that average over them."""
    posterior: Posterior = "dropout"
    """What differs between those passes: dropout masks; the adapter's weights, drawn with noise as wide as the loss
    allows (tfb) or as the loss is flat (laplace); or nothing, one pass without noise (none)."""
    tfb_tolerance: float = 0.01
    """Share by which the loss on labelled examples may grow from the noise of posterior tfb."""
    samples: int = 8
    """Answers that are drawn for each prompt, for the strategies that look at how they disagree."""
    temperature: float = 1.0
    """Of those draws."""
    top_p: float = 1.0
    """Those draws are from the fewest tokens that have this probability together; 1 for all tokens. A draw takes up to
    1 / top_p tries."""
    dropout: Literal["shared", "tied", "per_token"] = "shared"
    """Masks of the MC passes: shared makes each pass one sample of A's weights for the whole pool, tied one for each
    example, per_token none."""
    batch_size: int = 16
    """Prompts with a response, or with every answer of a closed set, that a device scores at once."""

    def __post_init__(self) -> None:
        require(self.mc_samples >= 1, f"scoring.mc_samples is {self.mc_samples}; it must be at least 1")
        require(
            self.mc_samples <= MOST_SAMPLES,
            f"scoring.mc_samples is {self.mc_samples}; it must be at most {MOST_SAMPLES}",
        )
        require_finite("scoring", self)
        require(self.samples >= 1, f"scoring.samples is {self.samples}; it must be at least 1")
        require(self.samples <= MOST_SAMPLES, f"scoring.samples is {self.samples}; it must be at most {MOST_SAMPLES}")
        require(self.temperature > 0, f"scoring.temperature is {self.temperature}; it must be positive")
        require(0 < self.top_p <= 1, f"scoring.top_p is {self.top_p}; it must be above 0 and at most 1")
        require(self.tfb_tolerance > 0, f"scoring.tfb_tolerance is {self.tfb_tolerance}; it must be positive")
        require(self.batch_size >= 1, f"scoring.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class GenerationConfig:
    """How responses are generated, on the pool and on the test set."""

    batch_size: int = 64
    """Prompts that a device answers at once."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"generation.batch_size is {self.batch_size}; it must be at least 1")


@dataclass(frozen=True)
class AcquisitionConfig:
    """Overrides of the parts of a strategy; none keeps the strategy's own.

    Example:
      >>> AcquisitionConfig(schedule="linear", selection="power").power
      1.0
    """

    reduction: Reduction = "sum"
    """Over the tokens of a response: sum as in the paper, mean or max."""
    normaliser: Literal["minmax", "zscore", "rank", "released"] | None = None
    """Scale on which base and full uncertainty are blended; released is that of the released code: base on [0, 1], full
    as raw sum."""
    schedule: Literal["released", "linear", "constant", "cosine"] | None = None
    """lambda(t), the weight of the base model."""
    constant: float = 0.5
    """Value of lambda under the constant schedule."""
    selection: Literal["top_k", "power"] | None = None
    """Most uncertain first, or log-score plus Gumbel noise (PowerBALD)."""
    power: float = 1.0
    """Coldness of the power selection; larger is closer to top_k."""
    target_file: str | None = None
    """Prompts, in the pool's format, that the model is to be good at, for the strategies that look for what is like
    them."""
    per_cost: bool = False
    """Whether strategies that pick the highest scores pick those with the most score for their expected cost, in
    loop.budget_unit."""
    score_at_most: int | None = None
    """A query scores so many unlabelled examples, drawn anew by seed and round, and picks among them; all when none."""

    def __post_init__(self) -> None:
        require_finite("acquisition", self)
        require(0 <= self.constant <= 1, f"acquisition.constant is {self.constant}; it must be in [0, 1]")
        require(self.power > 0, f"acquisition.power is {self.power}; it must be positive")
        require(
            self.score_at_most is None or self.score_at_most >= 1,
            f"acquisition.score_at_most is {self.score_at_most}; it must be at least 1, or none",
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How the fine-tuned model is judged after each round."""

    confidence: Literal["sequence", "mean_token"] = "sequence"
    """Probability read as confidence: of the whole response, or its geometric mean a token."""
    bins: int = 15
    """Bins of the expected calibration error."""
    answers: JudgedAnswers = "generated"
    """What is judged: the response that the model writes, or the most probable answer of a closed set, which takes no
    generation; auto is what scoring.answers says, so that what is measured is what is scored."""

    def judges_candidates(self, scored: Answers) -> bool:
        """Whether answers are taken from a closed set, where the pool is scored on `scored` ones."""
        return self.answers == "candidates" or (self.answers == "auto" and scored == "candidates")

    def __post_init__(self) -> None:
        require(self.bins >= 1, f"evaluation.bins is {self.bins}; it must be at least 1")
        require(self.bins <= MOST_BINS, f"evaluation.bins is {self.bins}; it must be at most {MOST_BINS}")
