"""`star-jax report`: builds a report again from run folders, or compares several experiments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from star_jax.cli.guard import guarded_main
from star_jax.errors import ConfigError
from star_jax.tracking.interruption import stop_if_asked

PROGRAM = "star-jax report"
WHEN_INTERRUPTED = "interrupted; the reports there were are kept, and the same command writes them anew"


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Builds the report and prints its path; of several folders, compares them on the screen first."""
    parser = argparse.ArgumentParser(
        prog=program,
        description="Write report.html and learning_curve.png from the run folders of an experiment. Of several "
        "experiments, write each one's and print a table that compares them.",
    )
    parser.add_argument(
        "directories", metavar="DIR", nargs="+", help="folder that holds STRATEGY/seed-N (a run's --output-dir)"
    )
    parser.add_argument(
        "--target",
        metavar="ACCURACY",
        type=float,
        help="an accuracy between 0 and 1; how many labels it takes is forecast from the learning curves, printed, and "
        "written into the report",
    )
    parsed = parser.parse_args(argv)
    directories, target = parsed.directories, parsed.target
    if target is not None and not 0 < target < 1:
        raise ConfigError(f"--target is {target:g}; it must be an accuracy between 0 and 1, for example 0.8")
    # Imported after parsing: drawing takes a while to load.
    from star_jax.report.page import build_report

    pages = []
    for directory in directories:
        stop_if_asked()
        pages.append(build_report(directory, target))
        if target is not None:
            from star_jax.report.outlook import print_outlook
            from star_jax.report.read import read_runs

            print_outlook(read_runs(Path(directory)), target, f"{directory} " if len(directories) > 1 else "")
    if len(directories) > 1:
        from star_jax.report.compare import print_comparison

        print_comparison(directories)
    for page in pages:
        print(page)
    return 0


def command() -> None:
    """`python -m star_jax.report`."""
    sys.exit(guarded_main(lambda argv: main(argv, "python -m star_jax.report"), None, WHEN_INTERRUPTED))
