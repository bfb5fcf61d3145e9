"""A plan as a person reads it: two tables, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from star_jax.planning.machines import GIGA
from star_jax.planning.plan import Entry, Plan, largest
from star_jax.planning.time import CALIBRATED, REACHED, Seconds


def print_plan(console: Console, plan: Plan, helps: Sequence[str], price: float | None, calibrated: bool) -> None:
    """Prints a plan.

    Args:
      console: where to.
      plan: what is planned.
      helps: what would make it fit, as flags.
      price: of the machine, an hour; None where it is not known.
      calibrated: whether times are as one program was measured to take.
    """
    chip, (data, fsdp) = plan.machine.chip, plan.mesh
    many = f"{plan.machine.devices} devices" if plan.machine.devices > 1 else "one device"
    room = "JAX takes" if chip.kind == "gpu" else "programs may fill"
    _say(console, f"{plan.machine.name}: {many}, of each of which {room} {chip.memory / GIGA:.1f} GB")
    shared = f"{fsdp} devices share a model" if fsdp > 1 else "each device has the whole model"
    _say(console, f"mesh: data {data} x fsdp {fsdp}; {shared}")
    console.print(memory_table(plan))
    console.print(times_table(plan))
    for line in (*_totals(plan, price), *_remarks(plan, helps, calibrated)):
        _say(console, line)


def memory_table(plan: Plan) -> Table:
    """GB a device of each program: by part, all of it, and whether that fits."""
    table = _table("GB a device", "weights", "adapter", "cache", "logits", "rest", "sum", "fits", "by")
    for entry in largest(plan.entries):
        parts = [f"{size / GIGA:.2f}" for size in (*entry.held, entry.bytes)]
        fits = "yes" if entry.bytes <= plan.machine.chip.memory else "no"
        table.add_row(Text(entry.program.name), *parts, fits, "formula" if entry.compiled is None else "compiler")
    return table


def times_table(plan: Plan) -> Table:
    """Batches and seconds of each program, and what devices send most of."""
    table = _table("time", "rows", "tokens", "batches", "s a batch", "all of them")
    if plan.mesh != (1, 1):
        table.add_column("most traffic", no_wrap=True)
    for _, group in groupby(plan.entries, key=lambda entry: entry.program.name):
        entries = list(group)
        top = largest(entries)[0]
        program, batches = top.program, sum(entry.program.batches for entry in entries)
        seconds = _sum(entry.seconds for entry in entries)
        tokens = f"{program.shape.capacity:,}" + (f" + {program.written[1]:,}" if program.kind == "generate" else "")
        row = [f"{program.shape.rows:,}", tokens, f"{batches:,.0f}", _range(seconds.times(1 / batches)), said(seconds)]
        if plan.mesh != (1, 1):
            row.append(_most(top))
        table.add_row(Text(program.name), *row)
    return table


def said(seconds: Seconds) -> str:
    """A range in the unit that suits its upper end: `2.1 to 6.5 hours`."""
    units = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
    size, unit = next((unit for unit in units if seconds.high >= 2 * unit[0]), units[-1])
    return f"{_range(seconds.times(1 / size))} {unit}"


def _totals(plan: Plan, price: float | None) -> list[str]:
    seconds = plan.seconds
    runs = len(plan.experiment.strategies) * len(plan.experiment.config.seeds)
    lines = [f"altogether: {said(seconds)}, for {runs} run{'s' * (runs > 1)}"]
    if price is not None:
        lines.append(f"price: {_range(seconds.times(price / 3600))}, at {price:g} an hour")
    return [*lines, "not counted: compiling, loading, and waiting for labels"]


def _remarks(plan: Plan, helps: Sequence[str], calibrated: bool) -> list[str]:
    shares = REACHED[plan.machine.chip.kind]
    words = [f"{low:.0%} to {high:.0%} of the peak {name}" for name, (low, high) in shares._asdict().items()]
    times = f"{', '.join(words)} (assumed)"
    if calibrated:
        times = f"{CALIBRATED[0]:g} to {CALIBRATED[1]:g} times what one program that was run here says"
    lines = [
        "weights and adapter are counted from their shapes; cache, logits and the rest are by formula, right to some "
        "20 %; what the compiler says is of the whole program",
        f"times are by formula: {times}; answers end between the length that is expected and the limit",
    ]
    short = plan.experiment.config.training.batch_size + plan.experiment.config.training.replay_rows
    if short < plan.machine.devices:
        lines.append(
            f"training.batch_size is {short} rows, and {plan.machine.devices} devices share them: some are idle"
        )
    if not plan.fits:
        lines.append("it does not fit" + (", and nothing that was tried makes it fit: take more devices" * (not helps)))
        lines.extend(f"it would fit with {way}" for way in helps)
    return lines


def _most(entry: Entry) -> str:
    """The collective that moves most, and how much a batch."""
    if not entry.work.sent:
        return "-"
    name, size = max(entry.work.sent.items(), key=lambda item: item[1])
    return f"{name}, {size / GIGA:.2f} GB"


def _sum(parts: Iterable[Seconds]) -> Seconds:
    total = Seconds(0.0, 0.0)
    for part in parts:
        total = total.plus(part)
    return total


def _range(seconds: Seconds) -> str:
    return " to ".join(f"{end:.3g}" if end < 1000 else f"{end:,.0f}" for end in seconds)


def _table(first: str, *names: str) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
