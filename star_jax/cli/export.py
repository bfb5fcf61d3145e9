"""`star-jax export`: base model and adapter as one checkpoint, for all that reads Hugging Face folders."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from star_jax.cli import flags
from star_jax.cli.guard import guarded_main
from star_jax.cli.outputs import check_output_folder
from star_jax.errors import ConfigError
from star_jax.tracking.interruption import stop_if_asked

if TYPE_CHECKING:
    from star_jax.checkpoints.merge import MergePlan

GIGABYTE = 10**9
PROGRAM = "star-jax export"
WHEN_INTERRUPTED = "interrupted; nothing is left in the folder of --out, and the same command starts anew"


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


def parse_export(argv: Sequence[str], program: str = PROGRAM) -> ExportConfig:
    """What `star-jax export ARGV` is asked to do.

    Raises:
      SystemExit: code 0 after `--help`; code 2 after a flag or value that cannot be used, explained on stderr.
    """
    return flags.parse(program, ExportConfig, argv)


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Writes the merged checkpoint that `argv` asks for."""
    config = parse_export(argv, program)
    # Imported after parsing, for the same reason as in run.py.
    from safetensors import SafetensorError

    from star_jax.checkpoints.files import on_one_line
    from star_jax.checkpoints.merge import plan_merge
    from star_jax.checkpoints.peft import read_peft
    from star_jax.environment import configure_logging
    from star_jax.runs.files import replace_folder_atomic

    configure_logging()
    check_output_folder("--out", config.out, {"--adapter": config.adapter})
    adapter, out = (Path(folder).expanduser().resolve() for folder in (config.adapter, config.out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out is {config.out}, where something is already; name a folder that is new or empty")
    raw, pairs = read_peft(adapter)
    base = _base(config, raw.get("base_model_name_or_path"))
    for folder in (adapter, base):
        if out.is_relative_to(folder.resolve()):
            raise ConfigError(f"--out is {config.out}, inside {folder}, which is only read; name a folder elsewhere")
    plan = plan_merge(base, pairs, round(config.max_shard_size * GIGABYTE), adapter)
    _check_room(out, plan.total_bytes)
    try:
        replace_folder_atomic(out, partial(_write, plan))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out} cannot be written, and nothing is left there: {on_one_line(error)}") from error
    count = sum(map(len, plan.files.values()))
    print(
        f"{out}: {len(plan.pairs)} of {count} tensors merged, {plan.total_bytes} bytes in {len(plan.files)} file(s), "
        f"with {plan.tokenizer}"
    )
    return 0


def _write(plan: MergePlan, folder: Path) -> None:
    from star_jax.checkpoints.merge import write_merged

    write_merged(plan, folder)
    stop_if_asked()


def _check_room(out: Path, size: int) -> None:
    """Refuses a disk that has no room for weights of that size, before the first is read."""
    place = next(folder for folder in (out, *out.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise ConfigError(
            f"--out is {out}, where {free / GIGABYTE:.1f} GB are free, and the merged weights have "
            f"{size / GIGABYTE:.1f} GB; make room, or name a folder on another disk"
        )


def _base(config: ExportConfig, named: str | None) -> Path:
    """Folder of the base model: `--model`, or the one that the adapter names."""
    from star_jax.checkpoints.hub import resolve_folder

    if config.model is not None:
        return resolve_folder(config.model)
    if not named:
        raise ConfigError(f"{config.adapter} does not say which model it is for; pass --model")
    try:
        return resolve_folder(named)
    except ConfigError as error:
        raise ConfigError(f"as {config.adapter} says, {error}; pass --model to name another place") from None


def command() -> None:
    """`python -m star_jax.export`."""
    sys.exit(guarded_main(lambda argv: main(argv, "python -m star_jax.export"), None, WHEN_INTERRUPTED))
