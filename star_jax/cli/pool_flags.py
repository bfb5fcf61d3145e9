"""The flags that `star-jax score` and `star-jax select` share: a base model, and a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from star_jax.cli import flags
from star_jax.cli.outputs import check_output_file, check_output_folder
from star_jax.config import SEEDS, WHOLE, ExperimentConfig, FormatConfig, OnBadRow, TooLong, check_format
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError
from star_jax.registry import load_plugins

Flags = TypeVar("Flags", bound="PoolFlags")

COUNTS = ("batch_size", "max_prompt_tokens", "max_response_tokens")


@dataclass(frozen=True)
class PoolFlags:
    """A base model and a file of prompts."""

    model: str
    """Hugging Face folder or hub name of the base model, or `embedded:skills`."""
    data: str
    """Examples: JSONL, CSV or Parquet file, or a hub name."""
    task: str
    """Template and answer set; generic is what the format section describes."""
    seed: int = 0
    """Seed of what is drawn."""
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
    plugins: tuple[str, ...] = ()
    """Python files or modules that register what is named here, comma separated; imported before."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a trace of the work, for TensorBoard or Perfetto."""
    format: FormatConfig = field(default_factory=FormatConfig)

    def __post_init__(self) -> None:
        require_at_least(self, {"seed": 0, **dict.fromkeys(COUNTS, 1)})
        if self.seed >= SEEDS:
            raise ConfigError(f"--seed is {self.seed}; it must be less than {SEEDS}")
        require_at_most(self, dict.fromkeys(COUNTS, WHOLE - 1))
        check_format(self.task, self.format)


def require_at_least(config: Any, least: dict[str, int]) -> None:
    """Refuses values of flags that are too small, by field, where they are given; raises `ConfigError`."""
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not tyro.MISSING and value < bound:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least {bound}")


def require_at_most(config: Any, most: dict[str, int]) -> None:
    """Refuses values of flags that are too large, by field, where they are given; raises `ConfigError`."""
    for name, bound in most.items():
        value = getattr(config, name)
        if value is not tyro.MISSING and value > bound:
            said = value if value < 10**20 else "of more than 20 digits"
            raise ConfigError(f"--{name.replace('_', '-')} is {said}; it must be at most {bound}")


def defaults_for(program: str, argv: Sequence[str], blank: Flags, of: Callable[[ExperimentConfig], Flags]) -> Flags:
    """Defaults of all flags, once the plug-ins that their help names are loaded.

    Args:
      program: name in messages.
      argv: the flags, of which `--config` and `--plugins` are looked at.
      blank: where no file is named.
      of: makes them from the experiment of the file that is.

    Raises:
      ConfigError: the file or a plug-in cannot be used.
    """
    early = flags.given(program, argv, "config", "plugins")
    chosen = early["config"]
    defaults = blank if chosen is None else of(config_from_mapping(*load_yaml(chosen)))
    load_plugins(defaults.plugins if early["plugins"] is None else flags.separated(early["plugins"]))
    flags.describe_names(type(defaults))
    return defaults


def pool_defaults(experiment: ExperimentConfig) -> dict[str, Any]:
    """What the file of an experiment says about the shared flags."""
    model, data = experiment.model, experiment.data
    return {
        "model": model.path,
        "data": tyro.MISSING if data.train is None else data.train,
        "task": data.task,
        "batch_size": experiment.scoring.batch_size,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "ignored_fields": model.ignored_fields,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_response_tokens": data.max_response_tokens,
        "too_long": data.too_long,
        "on_bad_row": data.on_bad_row,
        "plugins": experiment.plugins,
        "format": experiment.format,
    }


def check_out(
    config: PoolFlags, program: str, argv: Sequence[str], adapter: str | None = None, endings: Sequence[str] = ()
) -> Path | None:
    """Where `--out` leads, None for stdout.

    Args:
      config: the flags, with what a config file says.
      program: whose flags they are.
      argv: as they were given.
      adapter: folder of one that is read, too.
      endings: that the file may have; any where there are none.

    Raises:
      ConfigError: it cannot be written, or `--out` or `--profile` is what is read.
    """
    folders = {"--model": config.model, "--adapter": adapter}
    plugins = {f"--plugins {name}": name for name in config.plugins}
    read = {"--data": config.data, "--config": flags.given(program, argv, "config")["config"], **plugins}
    out = check_output_file("--out", config.out, read, folders, endings)
    if config.profile is not None:
        check_output_folder("--profile", config.profile, folders)
    return out
