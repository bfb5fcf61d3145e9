"""A run that people have labelled: files of their own, a table, an example that could not be labelled."""

import csv
import json
from pathlib import Path

import pytest
from seeds import seed_of

from star_jax.acquisition import pools
from star_jax.benchmarks.skills import generator as skills
from star_jax.config import DataConfig, ExperimentConfig, LoopConfig, LoraConfig, TrainingConfig
from star_jax.errors import LabelsNeeded
from star_jax.experiment.runner import run_experiment
from star_jax.tracking.console import Progress

POOL, ASKED = 40, 14


def write_rows(path, examples, labelled=True):
    rows = [
        {"id": example.id, "question": example.prompt.text} | ({"answer": example.response} if labelled else {})
        for example in examples
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fill_in(table):
    """Every label that is asked for, but the first of all, which is skipped."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["response"] = "[skip]" if number == 0 else skills.solve(row["prompt"])
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def labelled_run(request, tmp_path_factory) -> Path:
    """The folder of pool.jsonl, test.jsonl, and out/random/seed-0, whose one round has 13 labels and a skip.

    Fourteen examples are asked for: thirteen, and one that takes the place of what is skipped.
    """
    folder = tmp_path_factory.mktemp("labelled")
    pool = skills.pool_examples("R1", seed_of(request), POOL)
    write_rows(folder / "pool.jsonl", pool, labelled=False)
    write_rows(folder / "test.jsonl", skills.test_examples()[::40])
    config = ExperimentConfig(
        output_dir=str(folder / "out"),
        strategies=("random",),
        lora=LoraConfig(rank=2, alpha=4, dropout=0.0, training_dropout="off", targets=("q_proj",)),
        training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=16),
        loop=LoopConfig(initial_labels=ASKED - 1, rounds=1),
        data=DataConfig(
            task="skills",
            train=str(folder / "pool.jsonl"),
            test=str(folder / "test.jsonl"),
            max_prompt_tokens=9,
            max_response_tokens=6,
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PROMPT_SHAPES", "SEQUENCE_SHAPES"):
            patch.setattr(pools, name, 1)
        for _ in range(2):
            with pytest.raises(LabelsNeeded):
                run_experiment(config, Progress("silent"))
            fill_in(folder / "out" / "labels.csv")
        run_experiment(config, Progress("silent"))
    return folder
