"""The plan of an experiment on a machine: every program with its memory and time, on the mesh that it would get."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from star_jax.acquisition.strategy import Strategy
from star_jax.config import ExperimentConfig
from star_jax.experiment.lengths import Lengths
from star_jax.experiment.mesh_choice import choose_fsdp, residents_of
from star_jax.models.architecture import TransformerConfig
from star_jax.planning.machines import Machine
from star_jax.planning.memory import Arrays, Compiled, CompileProgram, Held, arrays_of, held_by
from star_jax.planning.programs import Batches, Program, programs_of
from star_jax.planning.time import Seconds, seconds_of
from star_jax.planning.work import Sizes, Work, sizes_of, work_of


@dataclass(frozen=True)
class Experiment:
    """What is planned.

    Attributes:
      config: the experiment.
      shape: of the model.
      strategies: of all runs.
      first: what picks the first labels; None where they are drawn.
      lengths: of its rows.
      closed: tokens of all answers of a closed set; 0 where there is none.
    """

    config: ExperimentConfig
    shape: TransformerConfig
    strategies: Sequence[Strategy]
    first: Strategy | None
    lengths: Lengths
    closed: int = 0


@dataclass(frozen=True)
class Entry:
    """A program of a plan.

    Attributes:
      program: what is run.
      held: bytes on a device by formula.
      work: of a batch, at the most.
      seconds: of all of its batches.
      compiled: what the compiler for the machine says; None where it was not asked.
    """

    program: Program
    held: Held
    work: Work
    seconds: Seconds
    compiled: Compiled | None = None

    @property
    def bytes(self) -> float:
        """On a device: the compiler's, where it was asked, else the formula's."""
        return self.held.total if self.compiled is None else self.compiled.total


@dataclass(frozen=True)
class Plan:
    """An experiment on a machine.

    Attributes:
      experiment: what is planned.
      machine: where.
      mesh: devices along `data` and `fsdp`.
      entries: its programs.
    """

    experiment: Experiment
    machine: Machine
    mesh: tuple[int, int]
    entries: tuple[Entry, ...]

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(entry.bytes <= self.machine.chip.memory for entry in self.entries)

    @property
    def seconds(self) -> Seconds:
        """Of all programs, without compiling, loading and what people take to label."""
        total = Seconds(0.0, 0.0)
        for entry in self.entries:
            total = total.plus(entry.seconds)
        return total


def make_plan(
    experiment: Experiment,
    machine: Machine,
    calibration: float | None = None,
    compiled: CompileProgram | None = None,
) -> Plan:
    """The plan of an experiment, on the mesh that a run would choose there.

    Args:
      experiment: what is planned.
      machine: where.
      calibration: seconds that one program was measured to take, over those of `time.ideal`.
      compiled: gives what a compiler says of a program; by formula when None.

    Raises:
      ConfigError: the devices cannot be divided as the configuration says, or the adapter has a target that the model
        does not have.
    """
    config, devices, chip = experiment.config, machine.devices, machine.chip
    model = sizes_of(config, experiment.shape), arrays_of(config, experiment.shape)
    room = None if chip.kind == "cpu" else chip.memory
    fsdp = choose_fsdp(config.mesh, lambda: residents_of(model[1].model.params, model[1].adapter), devices, room)
    batches = Batches(config, experiment.lengths, devices, experiment.closed)
    programs = programs_of(config, experiment.strategies, experiment.first, batches)
    plan = Plan(experiment, machine, (devices // fsdp, fsdp), ())
    entries = [_entry(plan, program, model, calibration) for program in programs]
    if compiled is not None:
        found = {one.program: compiled(one.program, model[1], fsdp) for one in largest(entries)}
        entries = [dataclasses.replace(one, compiled=found.get(one.program)) for one in entries]
    return dataclasses.replace(plan, entries=tuple(entries))


def _entry(plan: Plan, program: Program, model: tuple[Sizes, Arrays], calibration: float | None) -> Entry:
    config, chip, (sizes, arrays) = plan.experiment.config, plan.machine.chip, model
    held = held_by(program, sizes, arrays, config, plan.mesh[1], chip.kind)
    low, high = (work_of(program, sizes, config, plan.mesh, float(written)) for written in program.written)
    batch = seconds_of(low, high, chip, sizes.shape.dtype == "float32", calibration)
    return Entry(program, held, high, batch.times(program.batches))


def largest(entries: Iterable[Entry]) -> list[Entry]:
    """Of the programs of each name, the one that takes most memory by formula."""
    groups = groupby(entries, key=lambda entry: entry.program.name)
    return [max(group, key=lambda entry: entry.held.total) for _, group in groups]


def changed(experiment: Experiment, section: str, **values: object) -> Experiment:
    """The experiment with other settings of a section."""
    config = experiment.config
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(experiment, config=dataclasses.replace(config, **{section: part}))
