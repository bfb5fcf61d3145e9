"""`star-jax plan`: what an experiment takes on a machine, which need not be this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from star_jax.cli.run import DEFAULT_CONFIG, parse_with
from star_jax.config import ExperimentConfig
from star_jax.config.checks import require
from star_jax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from star_jax.planning.plan import Experiment, Plan

PROGRAM = "star-jax plan"


@dataclass(frozen=True)
class Arguments(ExperimentConfig):
    """Says what an experiment takes on a machine: whether it fits, how long it takes, what it costs. Runs nothing."""

    config: Annotated[str, tyro.conf.arg(metavar="FILE")] = str(DEFAULT_CONFIG)
    """YAML file of the experiment. The flags are those of `star-jax run`, and these:"""
    on: Annotated[str, tyro.conf.arg(metavar="MACHINE")] = "here"
    """The machine: here, v5e-8, v6e-16, H100, 8xH100, ...; any other name lists all."""
    price_per_hour: float | None = None
    """What the plan machine costs an hour, in a currency of yours; none for no price."""
    examples: tuple[int, ...] = ()
    """Rows of pool and test set, POOL,TEST, instead of reading the data: all as long as the limits let them be."""
    compile: bool = True
    """Whether programs are compiled for the machine where the compiler is installed, minutes each; by formula else."""
    calibrate: bool = False
    """Whether one program is run here first, so that times are of this machine. Only on here, with the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        price = self.price_per_hour
        require(price is None or price >= 0, f"--price-per-hour is {price}; it must not be negative")
        require(
            len(self.examples) in (0, 2) and all(count >= 1 for count in self.examples),
            f"--examples is {','.join(map(str, self.examples))}; give rows of pool and test set, for example 7473,1319",
        )


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Prints the plan; code 1 where the experiment does not fit."""
    config, asked = parse_with(Arguments, argv, program)
    # Imported after parsing: JAX takes seconds to load, and `--help` or a mistyped flag should not wait for it.
    import jax

    from star_jax.environment import configure_jax, configure_logging
    from star_jax.planning.advice import advice
    from star_jax.planning.compiled import compiler_for
    from star_jax.planning.machines import HERE, machine
    from star_jax.planning.plan import make_plan
    from star_jax.planning.this_machine import this_machine
    from star_jax.planning.words import print_plan
    from star_jax.tracking.closing import stdout_console
    from star_jax.tracking.console import Progress

    configure_logging()
    if asked.on.strip().lower() not in HERE:
        # What is compiled for another machine needs none of this one's accelerators.
        jax.config.update("jax_platforms", "cpu")
    configure_jax()
    on, progress = machine(asked.on, this_machine), Progress()
    require(not asked.calibrate or on.topology is None, "--calibrate runs a program, which needs --on here")
    experiment = planned(config, asked.examples)
    calibrated = _calibration(make_plan(experiment, on), progress.log) if asked.calibrate else None
    compiler = compiler_for(on) if asked.compile else "--compile is false"
    if isinstance(compiler, str):
        progress.log(f"memory is by formula: {compiler}")
        compiled = None
    else:
        compiled = compiler.programs(config, progress.log)
    plan = make_plan(experiment, on, calibrated, compiled)
    console, _ = stdout_console()
    print_plan(console, plan, advice(plan), asked.price_per_hour, calibrated=asked.calibrate)
    return 0 if plan.fits else 1


def _calibration(plan: Plan, log: Callable[[str], None]) -> float:
    """What one program takes here, over what it would take at the peaks."""
    from star_jax.checkpoints.hub import open_folder
    from star_jax.experiment.setup import load_base
    from star_jax.planning.trial import calibration

    config = plan.experiment.config
    program, found = calibration(plan, load_base(config, open_folder(config.model.path)))
    log(f"calibrated: {program.name} takes {found:.2f} times what it would at the peaks")
    return found


def planned(config: ExperimentConfig, examples: Sequence[int]) -> Experiment:
    """The experiment with the lengths of its rows: those of its data, or of so many that are as long as they may be.

    Raises:
      ConfigError, DataError: something the user can put right.
    """
    from star_jax.acquisition.strategy import get_strategy
    from star_jax.active.query import first_strategy
    from star_jax.data.run_data import prepare
    from star_jax.experiment.lengths import known_lengths, longest_lengths
    from star_jax.experiment.plan import named_strategies
    from star_jax.experiment.setup import open_sources
    from star_jax.planning.plan import Experiment
    from star_jax.tracking.console import Progress

    strategies = [get_strategy(name, config.acquisition) for name in named_strategies(config)]
    sources = open_sources(config, strategies, Progress(), room=float("inf"))
    limits = config.data.max_prompt_tokens, config.data.max_response_tokens
    candidates = sources.task.candidates or ()
    if examples:
        lengths = longest_lengths(examples[0], examples[1], *limits)
        closed = len(candidates) * config.data.max_response_tokens
    else:
        try:
            data = [prepare(config.data, sources.task, sources.encoder, seed, config.labels) for seed in config.seeds]
        except (ConfigError, DataError) as error:
            raise type(error)(f"{error}; or plan without the data: --examples POOL,TEST") from error
        lengths = known_lengths(sources.encoder, data, sources.replay)
        rows = sources.encoder.candidates(data[0].pool[:1], candidates)
        closed = sum(len(row.tokens) - row.prompt_length for row in rows)
    return Experiment(config, sources.shape, strategies, first_strategy(config), lengths, closed)
