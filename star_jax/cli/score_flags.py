"""The flags of `star-jax score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from star_jax.cli import flags
from star_jax.cli.pool_flags import PoolFlags, defaults_for, pool_defaults, require_at_least, require_at_most
from star_jax.config import LEAST_DROPOUT, MOST_SAMPLES, Answers, ExperimentConfig
from star_jax.errors import ConfigError

PROGRAM = "star-jax score"


@dataclass(frozen=True)
class ScoreConfig(PoolFlags):
    """Uncertainty scores for the examples of a file, one JSON object a line."""

    adapter: str | None = None
    """PEFT folder of a LoRA; the base model alone when none."""
    answers: Answers = "generated"
    """What is scored: the model's own greedy response, a closed answer set, or the file's gold response."""
    mc_samples: int = 1
    """Monte-Carlo dropout passes K; 1 is a single pass without dropout."""
    seed: int = 0
    """Seed of the dropout masks."""
    dropout: Literal["shared", "tied", "per_token"] = "shared"
    """Masks of the MC passes: shared makes each pass one sample of A's weights for all examples, tied one for each
    example, per_token none."""
    dropout_rate: float | None = None
    """Dropout probability of the MC passes; the adapter's own when none."""

    def __post_init__(self) -> None:
        require_at_least(self, {"mc_samples": 1})
        require_at_most(self, {"mc_samples": MOST_SAMPLES})
        super().__post_init__()
        if self.mc_samples > 1 and self.adapter is None:
            raise ConfigError(
                f"--mc-samples {self.mc_samples} needs --adapter: dropout acts on the adapter's input, "
                "and without one all passes are the same"
            )
        if self.dropout_rate is not None and not LEAST_DROPOUT <= self.dropout_rate <= 1 - LEAST_DROPOUT:
            raise ConfigError(
                f"--dropout-rate is {self.dropout_rate}; it must be from {LEAST_DROPOUT} to {1 - LEAST_DROPOUT}"
            )
        if self.dropout_rate is not None and self.mc_samples == 1:
            raise ConfigError("--dropout-rate does nothing in a single pass; raise --mc-samples or leave it out")


@dataclass(frozen=True)
class ScoreArguments(ScoreConfig):
    """Uncertainty scores for the examples of a file, one JSON object a line."""

    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of an experiment, whose model, pool, task, format, limits, answers and batch size are the defaults of
    the other flags; dropout samples are not taken from it."""


def parse_score(argv: Sequence[str], program: str = PROGRAM) -> ScoreConfig:
    """What `star-jax score ARGV` is asked to do.

    Raises:
      ConfigError: the file or a plug-in cannot be used, or values make no sense or contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    blank = ScoreArguments(model=tyro.MISSING, data=tyro.MISSING, task=tyro.MISSING)
    defaults = defaults_for(program, argv, blank, _score_defaults)
    parsed = flags.parse(program, ScoreArguments, argv, defaults)
    return ScoreConfig(**{name: value for name, value in flags.shallow(parsed).items() if name != "config"})


def _score_defaults(experiment: ExperimentConfig) -> ScoreArguments:
    return ScoreArguments(
        **pool_defaults(experiment), adapter=experiment.model.adapter, answers=experiment.scoring.answers
    )
