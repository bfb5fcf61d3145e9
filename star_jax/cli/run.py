"""`star-jax run`: active-learning experiments from a config file and flags."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from star_jax.cli import flags
from star_jax.cli.guard import guarded_main
from star_jax.cli.hosts import Hosts, hosts_of, run_as_one_of
from star_jax.cli.outputs import check_output_folder
from star_jax.config import ExperimentConfig
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError, DataError, LabelsNeeded
from star_jax.registry import load_plugins

Flags = TypeVar("Flags", bound=ExperimentConfig)

PROGRAM = "star-jax run"
_KEPT = "finished rounds and all labels are kept, and the same command continues after the last finished round"
WHEN_INTERRUPTED = f"interrupted; {_KEPT}"
WHEN_TERMINATED = f"asked to end, and ended; {_KEPT}"

_PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT_CONFIG = _PACKAGE / "configs" / "quickstart.yaml"
"""What `run` does without `--config`; the folder `configs` of the repository is part of the package."""


@dataclass(frozen=True)
class Arguments(ExperimentConfig):
    """Runs active-learning experiments: every strategy with every seed."""

    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = str(DEFAULT_CONFIG)
    """YAML file of the experiment. Every other flag replaces one of its values; the defaults shown are the file's."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for a trace of this run, for TensorBoard or Perfetto; no part of the experiment."""
    hosts: Hosts = field(default_factory=Hosts)


def parse_experiment(argv: Sequence[str]) -> ExperimentConfig:
    """The experiment that `star-jax run ARGV` asks for; errors as in `parse_run`."""
    return parse_run(argv)[0]


def parse_run(argv: Sequence[str], program: str = PROGRAM) -> tuple[ExperimentConfig, str | None]:
    """What `star-jax run ARGV` asks for, and where to trace to; errors as in `parse_with`."""
    config, parsed = parse_with(Arguments, argv, program)
    return config, parsed.profile


def parse_with(kind: type[Flags], argv: Sequence[str], program: str) -> tuple[ExperimentConfig, Flags]:
    """An experiment from the YAML file of `--config` and the flags over it; and all flags, others included.

    Plug-ins that the file or `--plugins` names are imported on the way, so that their names are known.

    Args:
      kind: dataclass of the flags: an `ExperimentConfig` with more fields, `config` among them.
      argv: arguments after the program's name.
      program: name of the command.

    Raises:
      ConfigError: the file or a plug-in cannot be used, or the values contradict each other.
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be read, explained on stderr.
    """
    early = flags.given(program, argv, "config", "plugins")
    file = early["config"] or _default_config()
    if file is None and not {"-h", "--help"} & set(argv):
        raise ConfigError(f"no --config was given and {DEFAULT_CONFIG} is not there; pass --config FILE")
    loaded = ExperimentConfig() if file is None else config_from_mapping(*load_yaml(file))
    argv = flags.without_former_names(argv, loaded.acquisition.normaliser)
    load_plugins(loaded.plugins if early["plugins"] is None else flags.separated(early["plugins"]))
    flags.describe_names(kind)
    parsed: Flags = flags.parse(program, kind, argv, kind(**flags.shallow(loaded)))
    settings = {item.name: getattr(parsed, item.name) for item in fields(ExperimentConfig)}
    return ExperimentConfig(**settings), parsed


def _default_config() -> Path | None:
    # A checkout that could not keep the link has the folder beside the package.
    places = (DEFAULT_CONFIG, _PACKAGE.parent / "configs" / DEFAULT_CONFIG.name)
    return next((place for place in places if place.is_file()), None)


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Runs the experiment that `argv` describes; prints a row a strategy, a row a run, and the path of the report."""
    began = time.monotonic()
    hosts = hosts_of(argv, program)
    if hosts is not None:
        return run_as_one_of(hosts, lambda: _run(argv, program, began), WHEN_INTERRUPTED, WHEN_TERMINATED)
    return _run(argv, program, began)


def _run(argv: Sequence[str], program: str, began: float) -> int:
    config, profile = parse_run(argv, program)
    if profile is not None:
        check_output_folder(
            "--profile", profile, {"model.path": config.model.path, "model.adapter": config.model.adapter}
        )
    # Imported after parsing: JAX takes seconds to load, and `--help` or a mistyped flag should not wait for it.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.experiment.runner import run_experiment
    from star_jax.parallel.hosts import leads, several, shared
    from star_jax.tracking.closing import print_tables
    from star_jax.tracking.console import Progress
    from star_jax.tracking.profiling import profiled
    from star_jax.tracking.tracker import open_trackers

    if several() is None:
        configure_logging()
        configure_jax()
    progress = Progress("auto" if leads() else "silent")
    tracking = open_trackers(config.track if leads() else (), progress.log)
    try:
        with profiled(profile if leads() else None, progress.log):
            summaries = run_experiment(config, progress, began, tracking)
    except LabelsNeeded:
        shared(lambda: _report_so_far(config.output_dir, progress.log))
        raise
    # Imported last: drawing is not needed before the first batch.
    from star_jax.report.page import build_report

    if leads():
        print_tables(summaries)
    report = shared(lambda: build_report(config.output_dir))
    if leads():
        tracking.report(report)
        print(f"report: {report}")
    return 0


def _report_so_far(folder: str, log: Callable[[str], None]) -> None:
    """The report while labels are waited for; a folder that none can be made of is no reason not to ask for them."""
    from star_jax.report.page import build_report

    with suppress(ConfigError, DataError):
        log(f"report so far: {build_report(folder)}")


def command() -> None:
    """`python -m star_jax.run`."""
    said = WHEN_INTERRUPTED, WHEN_TERMINATED
    sys.exit(guarded_main(lambda argv: main(argv, "python -m star_jax.run"), None, *said))
