"""`python -m star_jax.report DIR`: writes DIR/report.html and DIR/learning_curve.png from the run folders in DIR."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from star_jax.cli.flags import guarded_main
from star_jax.report.page import build_report


def main(argv: Sequence[str]) -> int:
    """Builds the report and prints its path."""
    parser = argparse.ArgumentParser(
        prog="python -m star_jax.report",
        description="Write report.html and learning_curve.png from the run folders of an experiment.",
    )
    parser.add_argument("directory", metavar="DIR", help="folder that holds STRATEGY/seed-N (a run's --output-dir)")
    print(build_report(parser.parse_args(argv).directory))
    return 0


if __name__ == "__main__":
    sys.exit(guarded_main(main))
