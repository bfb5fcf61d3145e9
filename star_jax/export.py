"""`python -m star_jax.export`: base model and adapter as one checkpoint, for all that reads Hugging Face folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from star_jax.cli.flags import ExportConfig, guarded_main, parse_export
from star_jax.errors import ConfigError

GIGABYTE = 10**9


def main(argv: Sequence[str]) -> int:
    """Writes the merged checkpoint that `argv` asks for."""
    config = parse_export(argv)
    # Imported after parsing, for the same reason as in run.py.
    from safetensors import SafetensorError

    from star_jax.checkpoints.hub import on_one_line
    from star_jax.checkpoints.merge import plan_merge, write_merged
    from star_jax.checkpoints.peft import read_peft
    from star_jax.environment import configure_logging
    from star_jax.runs.files import replace_folder_atomic

    configure_logging()
    adapter, out = (Path(folder).expanduser().resolve() for folder in (config.adapter, config.out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out is {config.out}, where something is already; name a folder that is new or empty")
    raw, pairs = read_peft(adapter)
    base = _base(config, raw.get("base_model_name_or_path"))
    for folder in (adapter, base):
        if out.is_relative_to(folder.resolve()):
            raise ConfigError(f"--out is {config.out}, inside {folder}, which is only read; name a folder elsewhere")
    plan = plan_merge(base, pairs, round(config.max_shard_size * GIGABYTE))
    try:
        replace_folder_atomic(out, lambda folder: write_merged(plan, folder))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{out} cannot be written, and nothing is left there: {on_one_line(error)}") from error
    count = sum(map(len, plan.files.values()))
    print(f"{out}: {len(plan.pairs)} of {count} tensors merged, {plan.total_bytes} bytes in {len(plan.files)} file(s)")
    return 0


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


if __name__ == "__main__":
    sys.exit(guarded_main(main))
