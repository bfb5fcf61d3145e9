"""What `test_devices` runs in a process of its own, which sees a certain number of devices.

    python tests/device_child.py FOLDER

reads FOLDER/model and FOLDER/adapter, and writes FOLDER/COUNT: a run of the embedded benchmark, and scores.npz, the
measures of every kind of pool under that adapter.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from star_jax import experiment
from star_jax.acquisition.pool_scoring import (
    BatchSizes,
    Pool,
    PoolShapes,
    Sampling,
    candidate_pool,
    proposed_pool,
    score_pool,
)
from star_jax.active.loop import Problem
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ModelConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data import skills_benchmark as skills
from star_jax.data.examples import Example
from star_jax.models.folders import resolve_folder
from star_jax.models.peft_format import load_adapter
from star_jax.runtime.progress import Progress

POOL = 50
"""No multiple of 8: on eight devices some have rows that only fill a batch up, and some nothing else."""

SIZES = BatchSizes(prompts=6, sequences=4)
CANDIDATES, ALIKE = (" 1", " 2 3", " 4"), 6
"""Answers of the closed set, and the tokens of the prompts that they are put behind: one shape is enough."""

SAMPLING = Sampling(2, 0.1, "shared")
TARGETS = ("q_proj", "down_proj")
CONFIG = ExperimentConfig(
    strategies=("star",),
    lora=LoraConfig(rank=2, alpha=4, dropout=SAMPLING.rate, training_dropout="tied", targets=TARGETS),
    training=TrainingConfig(
        learning_rate=5e-3,
        epochs=2,
        batch_size=10,
        replay=str(resolve_folder("embedded:skills") / experiment.REPLAY_FILE),
        replay_rows=3,
    ),
    scoring=ScoringConfig(mc_samples=SAMPLING.samples, dropout=SAMPLING.mode, batch_size=SIZES.sequences),
    generation=GenerationConfig(batch_size=SIZES.prompts),
    loop=LoopConfig(initial_labels=15, labels_per_round=7, rounds=3),
    data=DataConfig(
        pool_size=POOL,
        test_limit=20,
        max_prompt_tokens=skills.MAX_PROMPT_TOKENS,
        max_response_tokens=skills.MAX_RESPONSE_TOKENS,
    ),
)


def run(folder: Path, out: Path) -> tuple[Problem, PoolShapes]:
    """Runs the benchmark; returns what it ran on, with the shapes that programs have been compiled for by then."""
    made, prepare = [], experiment._problem

    def noted(*arguments: Any) -> tuple[Problem, PoolShapes]:
        made.append(prepare(*arguments))
        return made[-1]

    experiment._problem = noted
    config = dataclasses.replace(CONFIG, output_dir=str(out), model=ModelConfig(str(folder / "model")))
    experiment.run_experiment(config, Progress("silent"))
    return made[0]


def pools(problem: Problem, shapes: PoolShapes) -> dict[str, Pool]:
    """One of each kind."""
    encoder = problem.encoder
    gold = [Example(prompt, skills.solve(prompt.text)) for prompt in problem.prompts]
    alike = [
        prompt
        for prompt, tokens in zip(problem.prompts, encoder.prompts(problem.prompts), strict=True)
        if len(tokens) == ALIKE
    ]
    return {
        "generated": problem.pool,
        "candidates": candidate_pool(encoder, alike, CANDIDATES, SIZES.sequences),
        "proposed": proposed_pool(encoder.examples(gold), shapes.sequences),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    out = folder / str(jax.device_count())
    problem, shapes = run(folder, out)
    adapter, _ = load_adapter(folder / "adapter", problem.model.config)
    found = {}
    for kind, pool in pools(problem, shapes).items():
        for sampling in (None, SAMPLING):
            scores = score_pool(problem.model, adapter, pool, key=jax.random.key(3), sampling=sampling)
            found |= {f"{kind} {sampling is not None} {name}": values for name, values in scores.measures.items()}
            if scores.responses is not None:
                found[f"{kind} {sampling is not None} responses"] = scores.responses
    np.savez(out / "scores.npz", **{name: np.asarray(values) for name, values in found.items()})


if __name__ == "__main__":
    main()
