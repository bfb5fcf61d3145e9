"""How often the intervals of active testing hold, and how wide they are, on the predictions that runs have recorded.

    python experiments/active_testing_coverage.py RUNS [RUNS ...] [--draws 40]

Each round of each run below a folder is a test set with known answers: labels are drawn as `star-jax evaluate
--label-budget` draws them, and the interval from them is compared with the accuracy on all answers. Beside it stand
draws that do not look at confidence, which are those at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from star_jax.evaluation.active_testing import draw, estimate
from star_jax.runs.files import read_jsonl

BUDGETS = (20, 50, 100, 200)


def rounds(folders: list[Path]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Confidences and judgements of each recorded round."""
    found = []
    for file in sorted(file for folder in folders for file in folder.rglob("rounds/*/predictions.jsonl")):
        rows = read_jsonl(file)
        sure = np.asarray([min(row["confidence"], 1.0) for row in rows])
        found.append((sure, np.asarray([row["correct"] for row in rows])))
    return found


def trial(sure: np.ndarray, right: np.ndarray, budget: int, seed: int) -> tuple[bool, float, float]:
    """Whether an interval holds, its width, and how far the estimate is off."""
    draws = draw(sure, budget, seed)
    value, low, high = estimate(sure, draws, right[draws.places])
    truth = right.mean()
    return bool(low <= truth <= high), high - low, value - truth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=40, help="of each budget and round")
    given = parser.parse_args()
    recorded = rounds(given.folders)
    print(f"{len(recorded)} rounds of {len(recorded[0][0])} answers, {given.draws} draws of each\n")
    print("| labels | draws | held | mean width | root mean square error | bias |\n|---|---|---|---|---|---|")
    for budget in BUDGETS:
        for name in ("by confidence", "at random"):
            found = [
                trial(sure if name == "by confidence" else np.full_like(sure, 0.5), right, budget, seed)
                for place, (sure, right) in enumerate(recorded)
                for seed in range(place * given.draws, (place + 1) * given.draws)
            ]
            held, width, off = (np.asarray(column, np.float64) for column in zip(*found, strict=True))
            print(
                f"| {budget} | {name} | {100 * held.mean():.1f} % | {width.mean():.3f} | "
                f"{np.sqrt(np.square(off).mean()):.4f} | {off.mean():+.4f} |"
            )


if __name__ == "__main__":
    main()
