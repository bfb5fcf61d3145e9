"""The flags of `star-jax select`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from star_jax.cli import flags
from star_jax.cli.pool_flags import PoolFlags, defaults_for, pool_defaults, require_at_least, require_at_most
from star_jax.config import WHOLE, AcquisitionConfig, ExperimentConfig, LoraConfig

PROGRAM = "star-jax select"


@dataclass(frozen=True)
class SelectConfig(PoolFlags):
    """Picks what to label from the base model alone, all at once, and trains nothing.

    Responses that rows have are not looked at.
    """

    count: int = dataclasses.field(kw_only=True)
    """Examples to pick."""
    strategy: str = "typiclust"
    """How they are picked."""
    seed: int = 0
    """Seed of the strategies that draw."""
    out: str = "-"
    """Output file, by its ending .csv or .jsonl; - writes JSON lines to stdout."""
    answers: Literal["generated", "candidates"] = "generated"
    """What a strategy by uncertainty scores: the model's own greedy response, or a closed answer set."""
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, {"count": 1})
        require_at_most(self, {"count": WHOLE - 1})


@dataclass(frozen=True)
class SelectArguments(SelectConfig):
    """Picks what to label from the base model alone, all at once, and trains nothing."""

    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of an experiment, whose model, pool, task, format, limits, answers, batch size and sections acquisition
    and lora are the defaults of the other flags."""


def parse_select(argv: Sequence[str], program: str = PROGRAM) -> SelectConfig:
    """What `star-jax select ARGV` is asked to do.

    Raises:
      ConfigError: the file or a plug-in cannot be used, or values make no sense or contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    blank = SelectArguments(model=tyro.MISSING, data=tyro.MISSING, task=tyro.MISSING, count=tyro.MISSING)
    defaults = defaults_for(program, argv, blank, _select_defaults)
    parsed = flags.parse(program, SelectArguments, argv, defaults)
    return SelectConfig(**{name: value for name, value in flags.shallow(parsed).items() if name != "config"})


def _select_defaults(experiment: ExperimentConfig) -> SelectArguments:
    answers = experiment.scoring.answers
    return SelectArguments(
        **pool_defaults(experiment),
        count=tyro.MISSING,
        answers="generated" if answers == "reference" else answers,
        acquisition=experiment.acquisition,
        lora=experiment.lora,
    )
