"""`python -m star_jax.run`: active-learning experiments from a config file and flags."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from star_jax.cli.flags import guarded_main, parse_run


def main(argv: Sequence[str]) -> int:
    """Runs the experiment that `argv` describes; prints a row a strategy, a row a run, and the path of the report."""
    began = time.monotonic()
    config, profile = parse_run(argv)
    # Imported after parsing: JAX takes seconds to load, and `--help` or a mistyped flag should not wait for it.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.experiment.runner import run_experiment
    from star_jax.tracking.console import Progress, print_tables
    from star_jax.tracking.profiling import profiled

    configure_logging()
    configure_jax()
    progress = Progress()
    with profiled(profile, progress.log):
        summaries = run_experiment(config, progress, began)
    print_tables(summaries)
    # Imported last: drawing is not needed before the first batch.
    from star_jax.report.page import build_report

    print(f"report: {build_report(config.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded_main(main, None, "interrupted; the same command continues after the last finished round"))
