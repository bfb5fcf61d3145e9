"""`python -m star_jax.report DIR`: writes DIR/report.html and DIR/learning_curve.png from the run folders in DIR."""

from __future__ import annotations

import argparse
import sys

from star_jax.config import ConfigError
from star_jax.data.examples import DataError
from star_jax.report.page import build_report


def main(arguments: list[str] | None = None) -> int:
    """Builds the report and prints its path; returns the exit code, 2 for what the user can put right."""
    parser = argparse.ArgumentParser(
        prog="python -m star_jax.report",
        description="Write report.html and learning_curve.png from the run folders of an experiment.",
    )
    parser.add_argument("directory", metavar="DIR", help="folder that holds STRATEGY/seed-N (a run's --output-dir)")
    try:
        print(build_report(parser.parse_args(arguments).directory))
    except (ConfigError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
