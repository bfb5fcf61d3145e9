"""What to change where an experiment does not fit a machine: settings that are tried, by formula."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from star_jax.planning.machines import Machine
from star_jax.planning.plan import Experiment, Plan, changed, make_plan

Change = tuple[str, str, object]
"""Section and name of a setting, and its value."""

MOST_CHANGES = 2
"""Settings that are changed together at most."""

MOST_ADVICE = 4
"""Ways that are named at most."""


def advice(plan: Plan) -> list[str]:
    """Ways to make an experiment fit, as flags, those with the fewest changes first; none where it fits already.

    Args:
      plan: of the experiment.
    """
    if plan.fits:
        return []
    # Where the compiler finds more than the formula, the formula is given less room.
    over = max(1.0, *(entry.bytes / entry.held.total for entry in plan.entries))
    chip = plan.machine.chip
    machine = plan.machine._replace(chip=chip._replace(memory=chip.memory / over))
    found: list[set[Change]] = []
    changes = list(_changes(plan))
    for count in range(1, MOST_CHANGES + 1):
        for together in combinations(changes, count):
            names = {change[:2] for change in together}
            # What helps by itself needs no company, and a setting has one value.
            if len(names) < count or any(one <= {*together} for one in found):
                continue
            if _with(plan.experiment, machine, together).fits:
                found.append({*together})
    return [" ".join(sorted(map(_flag, one))) for one in found[:MOST_ADVICE]]


def _changes(plan: Plan) -> Iterator[Change]:
    """Settings that take less memory, those first that cost least."""
    config, (data, fsdp) = plan.experiment.config, plan.mesh
    for parts in range(2, data + 1):
        if data % parts == 0:
            yield "mesh", "fsdp", fsdp * parts
    if not config.training.rematerialise:
        yield "training", "rematerialise", True
    for section in ("scoring", "generation", "training"):
        size = getattr(config, section).batch_size
        for part in (2, 4, 8):
            if size % part == 0:
                yield section, "batch_size", size // part
    if config.model.dtype == "float32":
        yield "model", "dtype", "bfloat16"
    if config.model.quantization == "none":
        yield "model", "quantization", "int8"
    if config.model.quantization != "nf4":
        yield "model", "quantization", "nf4"


def _with(experiment: Experiment, machine: Machine, changes: tuple[Change, ...]) -> Plan:
    for section, name, value in changes:
        experiment = changed(experiment, section, **{name: value})
    return make_plan(experiment, machine)


def _flag(change: Change) -> str:
    section, name, value = change
    return f"--{section}.{name.replace('_', '-')} {str(value).lower()}"
