"""The flags of `star-jax score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from star_jax.cli import flags
from star_jax.config import (
    LEAST_DROPOUT,
    MOST_SAMPLES,
    SEEDS,
    WHOLE,
    Answers,
    ExperimentConfig,
    FormatConfig,
    OnBadRow,
    TooLong,
    check_format,
)
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError
from star_jax.registry import load_plugins

PROGRAM = "star-jax score"

_COUNTS = ("batch_size", "max_prompt_tokens", "max_response_tokens")


@dataclass(frozen=True)
class ScoreConfig:
    """Uncertainty scores for the examples of a file, one JSON object a line."""

    model: str
    """Hugging Face folder or hub name of the base model, or `embedded:skills`."""
    data: str
    """Examples: JSONL, CSV or Parquet file, or a hub name."""
    task: str
    """Template and answer set; generic is what the format section describes."""
    adapter: str | None = None
    """PEFT folder of a LoRA; the base model alone when none."""
    answers: Answers = "generated"
    """What is scored: the model's own greedy response, a closed answer set, or the file's gold response."""
    mc_samples: int = 1
    """Monte-Carlo dropout passes K; 1 is a single pass without dropout."""
    seed: int = 0
    """Seed of the dropout masks."""
    out: str = "-"
    """Output file; - writes to stdout."""
    batch_size: int = 16
    """Prompts that a device answers or scores at once."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the model's weights are stored and multiplied in."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Of the frozen projections, made when they are loaded."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the model's config.json that are not known here and known to you to be harmless, comma separated."""
    max_prompt_tokens: int = 1024
    """Longest prompt, tokens."""
    max_response_tokens: int = 512
    """Longest response generated or scored, tokens, end-of-sequence included."""
    too_long: TooLong = "error"
    """Prompts over the limit: refuse, leave the example out, or cut on the left; gold responses: refuse, or cut on the
    right (both)."""
    on_bad_row: OnBadRow = "error"
    """Rows that cannot be read, lack a field or repeat an id: refuse, or leave them out and count them."""
    dropout: Literal["shared", "tied", "per_token"] = "shared"
    """Masks of the MC passes: shared makes each pass one sample of A's weights for all examples, tied one for each
    example, per_token none."""
    dropout_rate: float | None = None
    """Dropout probability of the MC passes; the adapter's own when none."""
    plugins: tuple[str, ...] = ()
    """Python files or modules that register tasks, comma separated; imported before the task is looked up."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a trace of the scoring, for TensorBoard or Perfetto."""
    format: FormatConfig = field(default_factory=FormatConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("mc_samples", 1),
            ("seed", 0),
            ("batch_size", 1),
            ("max_prompt_tokens", 1),
            ("max_response_tokens", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
        if self.seed >= SEEDS:
            raise ConfigError(f"--seed is {self.seed}; it must be less than {SEEDS}")
        for name, most in (("mc_samples", MOST_SAMPLES), *((name, WHOLE - 1) for name in _COUNTS)):
            value = getattr(self, name)
            if value > most:
                said = value if value < 10**20 else "of more than 20 digits"
                raise ConfigError(f"--{name.replace('_', '-')} is {said}; it must be at most {most}")
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
        check_format(self.task, self.format)


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
    early = flags.given(program, argv, "config", "plugins")
    chosen = early["config"]
    if chosen is None:
        defaults = ScoreArguments(model=tyro.MISSING, data=tyro.MISSING, task=tyro.MISSING)
    else:
        defaults = _score_defaults(config_from_mapping(*load_yaml(chosen)))
    load_plugins(defaults.plugins if early["plugins"] is None else flags.separated(early["plugins"]))
    flags.describe_names(ScoreArguments)
    parsed = flags.parse(program, ScoreArguments, argv, defaults)
    return ScoreConfig(**{name: value for name, value in flags.shallow(parsed).items() if name != "config"})


def _score_defaults(experiment: ExperimentConfig) -> ScoreArguments:
    model, data = experiment.model, experiment.data
    return ScoreArguments(
        model=model.path,
        data=tyro.MISSING if data.train is None else data.train,
        task=data.task,
        adapter=model.adapter,
        answers=experiment.scoring.answers,
        batch_size=experiment.scoring.batch_size,
        dtype=model.dtype,
        quantization=model.quantization,
        ignored_fields=model.ignored_fields,
        max_prompt_tokens=data.max_prompt_tokens,
        max_response_tokens=data.max_response_tokens,
        too_long=data.too_long,
        on_bad_row=data.on_bad_row,
        plugins=experiment.plugins,
        format=experiment.format,
    )
