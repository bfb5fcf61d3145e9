"""The flags that `star-jax predict` and `star-jax evaluate` share: which adapter answers, and what it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from star_jax.cli import flags
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    FormatConfig,
    GenerationConfig,
    ModelConfig,
    OnBadRow,
    TooLong,
    check_format,
)
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError
from star_jax.registry import load_plugins
from star_jax.runs.stored_run import StoredRun, find_run

MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = 1024, 512
"""Limits where neither a run, nor a file, nor a flag says otherwise; as of `star-jax score`."""


@dataclass(frozen=True)
class AnswerFlags:
    """Which adapter answers, and what it reads."""

    place: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_OR_ADAPTER")]
    """Run folder (OUTPUT_DIR/STRATEGY/seed-N), an OUTPUT_DIR that holds one run, or the PEFT folder of a LoRA. A run
    brings its own settings, and the flags below replace some of them."""
    data: str | None = None
    """Examples: JSONL, CSV or Parquet file, or a hub name."""
    config: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of an experiment, whose model, task, format and limits are used for an adapter that is no run's."""
    model: str | None = None
    """Hugging Face folder or hub name of the base model; that of the run, the file or the adapter when none."""
    task: str | None = None
    """Template and answer set; generic is what the format section describes. That of the run or the file when none."""
    batch_size: int | None = None
    """Prompts that a device answers at once; that of the run or the file, or 64, when none."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type the model's weights are stored and multiplied in; that of the run or the file, or float32, when none."""
    quantization: Literal["auto", "none", "int8", "nf4"] = "auto"
    """Of the frozen projections, made when they are loaded; auto is that of the run or the file, or none."""
    ignored_fields: tuple[str, ...] = ()
    """Fields of the model's config.json that are not known here and known to you to be harmless, comma separated."""
    max_prompt_tokens: int | None = None
    """Longest prompt, tokens; that of the run or the file, or 1024, when none."""
    max_response_tokens: int | None = None
    """Longest response, tokens, end-of-sequence included; that of the run or the file, or 512, when none."""
    too_long: TooLong | None = None
    """Prompts over the limit: refuse, leave the example out, or cut on the left; as the run or the file, or refuse,
    when none."""
    on_bad_row: OnBadRow | None = None
    """Rows that cannot be read, lack a field or repeat an id: refuse, or leave them out and count them; as the run or
    the file, or refuse, when none."""
    plugins: tuple[str, ...] = ()
    """Python files or modules that register tasks, comma separated, besides those of the run or the file."""
    format: FormatConfig = field(default_factory=FormatConfig)


Flags = TypeVar("Flags", bound=AnswerFlags)


@dataclass(frozen=True)
class Asked:
    """What a command is asked for, with the settings that the run, the file and the flags give together.

    Attributes:
      config: model, data limits, format, batch size, and of a run everything else.
      adapter: PEFT folder.
      run: that the adapter is from, or None.
    """

    config: ExperimentConfig
    adapter: Path
    run: StoredRun | None

    def files_read(self, given: AnswerFlags) -> dict[str, str | Path | None]:
        """What it is called -> path or name of every file that is read, for `cli.outputs`."""
        data = self.config.data
        return {"--data": given.data, "--config": given.config, "data.train": data.train, "data.test": data.test}

    def folders_read(self) -> dict[str, str | Path | None]:
        """Likewise of folders."""
        whose = {"the adapter": self.adapter} if self.run is None else {"the run": self.run.path}
        return {**whose, "the model": self.config.model.path}


def parse_answer(program: str, kind: type[Flags], argv: Sequence[str]) -> tuple[Flags, Asked]:
    """The flags of a command of `kind`, and what they mean together with the run or the file.

    Raises:
      ConfigError: the folder, the file or a plug-in cannot be used, or values make no sense or contradict each other.
      DataError: the run's files are damaged.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    first: Flags = flags.parse(program, kind, argv)
    run = find_run(first.place)
    if run is not None and first.config is not None:
        raise ConfigError(f"--config is for an adapter that is no run's, and {run.path} has its own; leave it out")
    base = run.config if run is not None else _base_config(first)
    load_plugins((*base.plugins, *first.plugins))
    # Once more, so that single flags of the format section are laid over that of the run or the file.
    parsed: Flags = flags.parse(program, kind, argv, dataclasses.replace(first, format=base.format))
    adapter = Path(parsed.place).expanduser() if run is None else run.adapter
    return parsed, Asked(_merged(parsed, base, adapter), adapter, run)


def _base_config(given: AnswerFlags) -> ExperimentConfig:
    if given.config is not None:
        return config_from_mapping(*load_yaml(given.config))
    limits = {"max_prompt_tokens": MAX_PROMPT_TOKENS, "max_response_tokens": MAX_RESPONSE_TOKENS}
    if given.task is None:
        raise ConfigError(
            f"{given.place} is no run's adapter, so its task is not known; pass --task (and --format.prompt and others "
            "for generic), or --config with the file of an experiment"
        )
    task: dict[str, Any] = {"task": given.task, **limits}
    return ExperimentConfig(model=ModelConfig(path=""), data=DataConfig(**task))


def _merged(given: AnswerFlags, base: ExperimentConfig, adapter: Path) -> ExperimentConfig:
    """The settings with those that flags replace."""
    quantization = None if given.quantization == "auto" else given.quantization
    model = _replaced(base.model, path=given.model, dtype=given.dtype, quantization=quantization)
    if given.ignored_fields:
        model = dataclasses.replace(model, ignored_fields=given.ignored_fields)
    if not model.path:
        model = dataclasses.replace(model, path=_named_base(adapter))
    data = _replaced(
        base.data,
        task=given.task,
        max_prompt_tokens=given.max_prompt_tokens,
        max_response_tokens=given.max_response_tokens,
        too_long=given.too_long,
        on_bad_row=given.on_bad_row,
    )
    check_format(data.task, given.format)
    if given.batch_size is not None and given.batch_size < 1:
        raise ConfigError(f"--batch-size is {given.batch_size}; it must be at least 1")
    generation = base.generation if given.batch_size is None else GenerationConfig(given.batch_size)
    return dataclasses.replace(base, model=model, data=data, generation=generation, format=given.format)


def _replaced(section: Any, **values: Any) -> Any:
    return dataclasses.replace(section, **{name: value for name, value in values.items() if value is not None})


def _named_base(adapter: Path) -> str:
    from star_jax.checkpoints.peft import read_peft

    named = read_peft(adapter)[0].get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{adapter} does not say which model it is for; pass --model")
    return named
