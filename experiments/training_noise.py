"""How much accuracy differs between trainings on the same few labels, as PROTOCOL.md says.

    python experiments/training_noise.py run --model models/smollm2 --train trec_train.jsonl --test trec_test.jsonl
    python experiments/training_noise.py tables

`run` adds a line a training to experiments/results/training_noise.jsonl and goes on where it was stopped: the labels
are the same for every recipe and key; a key decides the fresh adapter, the order of the rows and the dropout. `tables`
prints accuracy by recipe and number of labels: its mean, its standard deviation over keys, and what chance in the
test set alone would make of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

import star_jax as sj

RESULTS = Path(__file__).parent / "results" / "training_noise.jsonl"
LABELS = (30, 60, 120)
KEYS = range(1, 9)
POOL, TESTED, LIMITS = 800, 200, sj.TokenLimits(prompt=96, response=6)
PROMPT = (
    "Question: {{ text }}\nWhat type of answer is asked for: description, entity, abbreviation, person, location or "
    "number?\n"
)


class Recipe(NamedTuple):
    """How an adapter is trained."""

    lora: sj.LoraConfig
    training: sj.TrainingConfig


TODAY = Recipe(
    sj.LoraConfig(rank=16, alpha=32, dropout=0.05),
    sj.TrainingConfig(learning_rate=5e-4, epochs=5, batch_size=8, decay_b=0.1),
)
RECIPES = {
    "today": TODAY,
    "min_steps": TODAY._replace(training=replace(TODAY.training, min_steps=80)),
    "mean_weights": TODAY._replace(training=replace(TODAY.training, min_steps=80, average_fraction=0.5)),
    "low_rate": TODAY._replace(training=replace(TODAY.training, min_steps=80, learning_rate=1.5e-4)),
    "tied_dropout": TODAY._replace(lora=replace(TODAY.lora, dropout=0.1, training_dropout="tied")),
    "l2_b": TODAY._replace(training=replace(TODAY.training, decay_b=0.5)),
    "penalty": TODAY._replace(training=replace(TODAY.training, confidence_penalty=0.1)),
}


def read_rows(file: Path) -> list[dict[str, str]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(args: argparse.Namespace) -> None:
    """Every training that the file of results does not have yet."""
    generator = np.random.default_rng(0)
    train, test = read_rows(args.train), read_rows(args.test)
    pool = [train[place] for place in generator.permutation(len(train))[:POOL]]
    form = sj.Format(prompt=PROMPT, response="{{ label }}")
    tested = sj.read_pool([test[place] for place in generator.permutation(len(test))[:TESTED]], form)
    model = sj.load_model(str(args.model), dtype="float32")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    done = {(row["recipe"], row["labels"], row["key"]) for row in read_results()}
    for key in KEYS:
        for name in args.recipes or RECIPES:
            for labels in LABELS:
                if (name, labels, key) in done:
                    continue
                start, recipe = time.monotonic(), RECIPES[name]
                adapter = sj.fit(
                    model,
                    sj.read_pool(pool[:labels], form),
                    lora=recipe.lora,
                    training=recipe.training,
                    limits=LIMITS,
                    key=key,
                )
                found = sj.evaluate(model, tested, adapter, limits=LIMITS)
                row = {
                    **{"recipe": name, "labels": labels, "key": key, "commit": commit},
                    **{figure: getattr(found, figure) for figure in ("accuracy", "nll", "brier", "ece", "auroc")},
                    "seconds": round(time.monotonic() - start, 1),
                }
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)


def read_results() -> list[dict]:
    """The lines there are."""
    return read_rows(RESULTS) if RESULTS.is_file() else []


def tables() -> None:
    """Prints what has been found."""
    cells = defaultdict(list)
    for row in read_results():
        cells[row["recipe"], row["labels"]].append(row)
    print("| recipe | labels | keys | accuracy, mean | sd over keys | lowest, highest | sd by test set | NLL | ECE |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, labels), rows in sorted(cells.items(), key=lambda cell: (list(RECIPES).index(cell[0][0]), cell[0][1])):
        accuracy = np.asarray([row["accuracy"] for row in rows])
        mean, spread = accuracy.mean(), f"{accuracy.std(ddof=1):.3f}" if len(rows) > 1 else "-"
        # All have the same test set: this is what another one of its size would change, and no part of the spread.
        chance = (mean * (1 - mean) / TESTED) ** 0.5
        nll, ece = (np.mean([row[figure] for row in rows]) for figure in ("nll", "ece"))
        print(
            f"| {name} | {labels} | {len(rows)} | {mean:.3f} | {spread} | {accuracy.min():.3f}, {accuracy.max():.3f} "
            f"| {chance:.3f} | {nll:.3f} | {ece:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "tables"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--recipes", nargs="*", choices=RECIPES)
    args = parser.parse_args()
    if args.action == "tables":
        tables()
    elif None in (args.model, args.train, args.test):
        parser.error("run needs --model, --train and --test")
    else:
        run(args)


if __name__ == "__main__":
    main()
