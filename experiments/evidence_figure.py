"""Draws accuracy and paired differences of regime R1 from the recorded runs: python experiments/evidence_figure.py

Left, the mean accuracy of each strategy by number of labels. Right, `star` minus `random` on the same seed: every seed,
and the mean with its 95 % interval after Student at each number of labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from evidence_tables import BASE, read
from matplotlib.figure import Figure
from scipy import stats

OUT = Path(__file__).parent / "results" / "skills_R1_learning_curve.png"
COLOURS = {"star": "tab:blue", "random": "tab:grey"}


def main() -> None:
    runs = read()
    seeds = sorted(runs[BASE, "star"].keys() & runs[BASE, "random"].keys())
    accuracy = {
        name: np.asarray([[row["accuracy"] for row in runs[BASE, name][seed]["rounds"]] for seed in seeds])
        for name in COLOURS
    }
    labels = [row["labelled"] for row in runs[BASE, "star"][seeds[0]]["rounds"]]
    difference = accuracy["star"] - accuracy["random"]
    mean = difference.mean(axis=0)
    half = stats.t.ppf(0.975, len(seeds) - 1) * difference.std(axis=0, ddof=1) / len(seeds) ** 0.5
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        left.plot(labels, accuracy[name].mean(axis=0), marker="o", color=colour, label=name)
    left.set(xlabel="labels", ylabel="accuracy", title=f"mean of {len(seeds)} seeds", ylim=(0, 1))
    left.legend(frameon=False)
    right.axhline(0, color="black", linewidth=0.8)
    right.plot(labels, difference.T, color="tab:blue", alpha=0.15, linewidth=0.8)
    right.errorbar(labels, mean, yerr=half, marker="o", color="tab:blue", capsize=3)
    right.set(xlabel="labels", ylabel="difference in accuracy", title="star minus random on the same seed")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT, dpi=150)
    for count, value, width in zip(labels, mean, half, strict=True):
        print(f"{count} labels: {value:+.3f} ± {width:.3f}")


if __name__ == "__main__":
    main()
