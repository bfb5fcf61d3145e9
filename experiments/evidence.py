"""Runs the experiments of PROTOCOL.md: `python experiments/evidence.py OUTPUT_DIR [NAME ...] [--list]`.

Every name is one line of the protocol; without a name all that are ready run, in its order. A run that was stopped goes
on where it was, and one that is finished is not run again, so the same command may be given as often as one likes.
Settings that are not named here are those of configs/quickstart.yaml.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple


class Experiment(NamedTuple):
    """One line of the protocol.

    Attributes:
      strategies: what is compared.
      seeds: the reported ones, paired over strategies.
      flags: settings beside those of configs/quickstart.yaml.
    """

    strategies: str
    seeds: range
    flags: tuple[str, ...] = ()


ALL = "random,entropy,base_only,star,star_constant,star_reversed"
TWELVE = range(7, 19)
SIX = range(7, 13)
HERE = Path(__file__).parent

EXPERIMENTS = {
    "R1": Experiment("star,random", range(7, 37)),
    "R1_others": Experiment("entropy,base_only,star_constant,star_reversed", range(7, 37)),
    "R0": Experiment(ALL, TWELVE, ("--data.regime", "R0")),
    "R3": Experiment(ALL, TWELVE, ("--data.regime", "R3")),
    "mc_1": Experiment("star", TWELVE, ("--scoring.mc-samples", "1")),
    "minmax": Experiment("star", TWELVE, ("--acquisition.normaliser", "minmax")),
    "linear": Experiment("star", TWELVE, ("--acquisition.schedule", "linear")),
    "decay_b_0": Experiment("star,random", TWELVE, ("--training.decay-b", "0")),
    "penalty": Experiment("star,random", TWELVE, ("--training.confidence-penalty", "0.1")),
    "dropout_off": Experiment(
        "entropy_dynamic,random",
        TWELVE,
        ("--lora.dropout", "0", "--lora.training-dropout", "off", "--acquisition.normaliser", "rank"),
    ),
    "inert_base": Experiment("star", SIX, ("--acquisition.normaliser", "released")),
    "same_passes": Experiment("entropy_dynamic", SIX, ("--acquisition.normaliser", "rank")),
    "gold_scored": Experiment("star", SIX, ("--scoring.answers", "reference")),
    "wrong_length": Experiment("star,random", SIX, ("--plugins", f"{HERE}/defects/wrong_length.py")),
    "no_end": Experiment("star,random", SIX, ("--plugins", f"{HERE}/defects/no_end.py")),
}


def command(name: str, directory: Path) -> list[str]:
    """What a person would type for one experiment."""
    experiment = EXPERIMENTS[name]
    seeds = ",".join(map(str, experiment.seeds))
    flags = ["--output-dir", str(directory / name), "--strategies", experiment.strategies, "--seeds", seeds]
    return ["-m", "star_jax.run", *flags, *experiment.flags]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    args = parser.parse_args()
    if unknown := set(args.names) - EXPERIMENTS.keys():
        parser.error(f"no experiment is named {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    for name in args.names or EXPERIMENTS:
        words = command(name, args.directory)
        print(f"{time.strftime('%H:%M:%S')} {name}: python {' '.join(words)}", flush=True)
        if not args.list and (code := subprocess.run([sys.executable, *words], check=False).returncode):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
