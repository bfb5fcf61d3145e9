"""`python -m star_jax.run`: active-learning experiments from a config file and flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from star_jax.command_line import guarded_main, parse_experiment


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that `argv` describes; prints a table, a row a strategy, and the path of the report."""
    config = parse_experiment(argv)
    # Imported after parsing: JAX takes seconds to load, and `--help` or a mistyped flag should not wait for it.
    from star_jax.experiment import configure_jax, configure_logging, run_experiment
    from star_jax.report import build_report
    from star_jax.runtime.progress import Progress, print_table

    configure_logging()
    configure_jax()
    summaries = run_experiment(config, Progress())
    print_table(summaries)
    print(f"report: {build_report(config.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded_main(main, None, "interrupted; the same command continues after the last finished round"))
