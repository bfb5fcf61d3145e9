"""The commands' flags, and how a command's errors reach the user.

Belongs here: what the commands share between `sys.argv` and their first line of work. Nothing here
imports JAX, so that `--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from star_jax.config import (
    LEAST_DROPOUT,
    SEEDS,
    Answers,
    ExperimentConfig,
    FormatConfig,
    OnBadRow,
    TooLong,
    check_format,
)
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError, DataError, LabelsNeeded

DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
"""What `python -m star_jax.run` runs without `--config`; part of the repository, not of the installed package."""

_RUN = "python -m star_jax.run"
_SCORE = "python -m star_jax.score"
_EXPORT = "python -m star_jax.export"
_REGISTRY = ConstructorRegistry()
_TYRO = (tyro.conf.FlagConversionOff,)  # `_switch` takes a value too, as every other flag does


@_REGISTRY.primitive_rule
def _none(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[None] | None:
    """`none` for the optional fields, in the lower case that the field documentation uses."""
    if type_info.type is not NoneType:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{none}",
        choices=("none",),
        instance_from_str=lambda _: None,
        is_instance=lambda value: value is None,
        str_from_instance=lambda _: ["none"],
    )


@_REGISTRY.primitive_rule
def _switch(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[bool] | None:
    """`--flag`, `--flag true` and `--flag false`, the values as in a YAML file."""
    if type_info.type is not bool:
        return None

    def parse(arguments: list[str]) -> bool:
        if len(arguments) > 1 or (arguments and arguments[0].lower() not in ("true", "false")):
            raise ValueError(f"{' '.join(arguments)!r} is neither true nor false")
        return not arguments or arguments[0].lower() == "true"

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="[{true,false}]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    )


@_REGISTRY.primitive_rule
def _comma_separated(type_info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Any, ...]] | None:
    """`a,b` as one argument for `tuple[str, ...]` and `tuple[int, ...]`."""
    item_type = {(str, ...): str, (int, ...): int}.get(typing.get_args(type_info.type))
    if type_info.type_origin is not tuple or item_type is None:
        return None

    def parse(arguments: list[str]) -> tuple[Any, ...]:
        items = [item.strip() for item in arguments[0].split(",")] if arguments[0].strip() else []
        for item in items:
            if not item:
                raise ValueError(f"{arguments[0]!r} has an empty entry; separate entries by single commas")
            if item_type is int and not item.removeprefix("-").isdecimal():
                raise ValueError(f"{item!r} is not a whole number")
        return tuple(item_type(item) for item in items)

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME,..." if item_type is str else "INT,...",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(item, item_type) for item in value),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


@dataclass(frozen=True)
class Arguments(ExperimentConfig):
    """What `run` is told: a file, and values that replace the file's."""

    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = str(DEFAULT_CONFIG)
    """YAML file of the experiment. Every other flag replaces one of its values; the defaults shown are the file's."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a trace of this run, for TensorBoard or Perfetto; no part of the experiment."""


def parse_experiment(argv: Sequence[str]) -> ExperimentConfig:
    """The experiment that `python -m star_jax.run ARGV` asks for; errors as in `parse_run`."""
    return parse_run(argv)[0]


def parse_run(argv: Sequence[str]) -> tuple[ExperimentConfig, str | None]:
    """What `python -m star_jax.run ARGV` asks for: the YAML file, then the flags over it; and where to trace to.

    Raises:
      ConfigError: the file cannot be used, or the values contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    chosen = _named_file(_RUN, argv)
    if chosen is not None or DEFAULT_CONFIG.is_file():
        loaded = config_from_mapping(*load_yaml(DEFAULT_CONFIG if chosen is None else chosen))
    elif {"-h", "--help"} & set(argv):
        loaded = ExperimentConfig()
    else:
        raise ConfigError(
            "no --config was given and this installation comes without configs/quickstart.yaml; "
            "pass --config FILE, for example one from the configs folder of the repository"
        )
    parsed = tyro.cli(
        Arguments,
        prog=_RUN,
        description="Run active-learning experiments: every strategy with every seed.",
        args=list(argv),
        default=Arguments(**_shallow(loaded)),
        config=_TYRO,
        registry=_REGISTRY,
    )
    settings = {name: value for name, value in _shallow(parsed).items() if name not in ("config", "profile")}
    return ExperimentConfig(**settings), parsed.profile


def _named_file(program: str, argv: Sequence[str]) -> str | None:
    """What `--config` names."""
    parser = argparse.ArgumentParser(
        program, usage=f"{program} [--config FILE] [OPTIONS]", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE")
    return parser.parse_known_args(argv)[0].config


def _shallow(config: Any) -> dict[str, Any]:
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}


@dataclass(frozen=True)
class ScoreConfig:
    """Uncertainty scores for the examples of a file, one JSON object a line."""

    model: str
    """Hugging Face folder or hub name of the base model, or `embedded:skills`."""
    data: str
    """Examples: JSONL, CSV or Parquet file, or a hub name."""
    task: str
    """Template and answer set: gsm8k, boolq, boolq_passage, openbookqa, skills, released, or generic, which the format
    section describes."""
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


def parse_score(argv: Sequence[str]) -> ScoreConfig:
    """What `python -m star_jax.score ARGV` is asked to do.

    Raises:
      ConfigError: values that make no sense, or contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    chosen = _named_file(_SCORE, argv)
    if chosen is None:
        defaults = ScoreArguments(model=tyro.MISSING, data=tyro.MISSING, task=tyro.MISSING)
    else:
        defaults = _score_defaults(config_from_mapping(*load_yaml(chosen)))
    parsed = tyro.cli(ScoreArguments, prog=_SCORE, args=list(argv), default=defaults, config=_TYRO, registry=_REGISTRY)
    return ScoreConfig(**{name: value for name, value in _shallow(parsed).items() if name != "config"})


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
        format=experiment.format,
    )


@dataclass(frozen=True)
class ExportConfig:
    """A base model with an adapter merged into its weights, as a Hugging Face folder of its own."""

    adapter: str
    """PEFT folder of a LoRA."""
    out: str
    """Folder to write, new or empty."""
    model: str | None = None
    """Hugging Face folder or hub name of the base model; the one that the adapter names when none."""
    max_shard_size: float = 5.0
    """Largest file of weights, in GB (1e9 bytes); larger models are written as several."""

    def __post_init__(self) -> None:
        if not 0 < self.max_shard_size < float("inf"):
            raise ConfigError(f"--max-shard-size is {self.max_shard_size}; it must be a positive number of GB")


def parse_export(argv: Sequence[str]) -> ExportConfig:
    """What `python -m star_jax.export ARGV` is asked to do.

    Raises:
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be used, explained on stderr.
    """
    return tyro.cli(ExportConfig, prog=_EXPORT, args=list(argv), config=_TYRO, registry=_REGISTRY)


def guarded_main(
    main: Callable[[Sequence[str]], int],
    argv: Sequence[str] | None = None,
    when_interrupted: str = "interrupted",
) -> int:
    """Runs a command; what the user can put right becomes one line on stderr.

    Args:
      main: takes the arguments after the program's name and returns an exit code.
      argv: those arguments; the process's own when None.
      when_interrupted: what to say after Ctrl-C.

    Returns:
      The exit code: what `main` returned, 2 after a `ConfigError`, a `DataError`, a `FloatingPointError` (training
      or scores diverged), where memory is full or a file cannot be written, 3 where a person has to label first,
      130 after Ctrl-C, 141 when the reader of stdout went away.
    """
    try:
        code = main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except (ConfigError, DataError, FloatingPointError) as error:
        print(f"star_jax: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"star_jax: error: out of memory ({error}); lower the batch sizes", file=sys.stderr)
        return 2
    except LabelsNeeded as needed:
        print(f"star_jax: {needed}")
        return 3
    except KeyboardInterrupt:
        print(f"star_jax: {when_interrupted}", file=sys.stderr)
        return 130
    except RuntimeError as error:
        # What JAX raises when an accelerator's memory is full; its own class would need JAX imported here.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).splitlines()[0]
        print(
            f"star_jax: error: out of device memory; lower the batch sizes or token limits ({first})", file=sys.stderr
        )
        return 2
    except BrokenPipeError:
        # `| head` has seen enough. What is still buffered goes nowhere, or the flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        print(f"star_jax: error: {error.strerror or error}{place}; what was finished is kept", file=sys.stderr)
        return 2
