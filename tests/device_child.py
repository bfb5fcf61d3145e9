"""What `test_devices` runs in a process of its own, which sees a certain number of devices.

    python tests/device_child.py FOLDER

reads FOLDER/model and FOLDER/adapter, and writes FOLDER/COUNT: a run of the embedded benchmark, and scores.npz, the
measures of every kind of pool under that adapter. Of several devices, two share a model.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from star_jax.acquisition import long_answers
from star_jax.acquisition.pool_scoring import Sampling, score_pool
from star_jax.acquisition.pools import BatchSizes, Pool, candidate_pool, generated_pool, proposed_pool
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer, resolve_folder
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import load_adapter
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data import step_shapes
from star_jax.data.batching import Shape
from star_jax.data.bucketing import Shapes
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.experiment import runner as experiment
from star_jax.experiment import setup
from star_jax.inference import continuous
from star_jax.tracking.console import Progress

POOL = 50
"""No multiple of 8: on eight devices some have rows that only fill a batch up, and some nothing else."""

SIZES = BatchSizes(prompts=6, sequences=4)
LIMITS = Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS)
SHAPES = Shapes(
    prompts=(Shape(SIZES.prompts, LIMITS.prompt, 5 * LIMITS.prompt),),
    sequences=(Shape(SIZES.sequences, LIMITS.prompt + LIMITS.response, 4 * LIMITS.prompt),),
)
"""One of each, too narrow for rows that are all long: what more there would be takes its time to compile."""

CANDIDATES, ALIKE = (" 1", " 2 3", " 4"), 6
"""Answers of the closed set, and the tokens of the prompts that they are put behind."""

SAMPLING = Sampling(2, 0.1, "shared")
MASKS = {"generated": "shared", "candidates": "tied", "proposed": "shared"}
"""Of each kind of pool; tied ones are drawn for the number of a row, on whichever device it is."""

TARGETS = ("q_proj", "down_proj")
REPLAY = resolve_folder("embedded:skills") / "replay.jsonl"
CONFIG = ExperimentConfig(
    strategies=("star",),
    lora=LoraConfig(rank=2, alpha=4, dropout=SAMPLING.rate, training_dropout="per_token", targets=TARGETS),
    training=TrainingConfig(learning_rate=5e-3, epochs=2, batch_size=10, replay=str(REPLAY), replay_rows=3),
    scoring=ScoringConfig(mc_samples=SAMPLING.samples, dropout=SAMPLING.mode, batch_size=SIZES.sequences),
    generation=GenerationConfig(batch_size=SIZES.prompts),
    loop=LoopConfig(initial_labels=15, labels_per_round=7, rounds=3),
    data=DataConfig(
        pool_size=POOL, test_limit=20, max_prompt_tokens=LIMITS.prompt, max_response_tokens=LIMITS.response
    ),
)


def run(folder: Path, out: Path) -> None:
    """Runs the benchmark with few shapes."""
    setup.choose_shapes = lambda *lengths_and_sizes: SHAPES
    step_shapes.USUAL_SHAPES = 1
    mesh = MeshConfig(fsdp=2 if jax.device_count() > 1 else 1)
    config = dataclasses.replace(CONFIG, output_dir=str(out), model=ModelConfig(str(folder / "model")), mesh=mesh)
    experiment.run_experiment(config, Progress("silent"))


def pools(encoder: Encoder) -> dict[str, Pool]:
    """One of each kind."""
    examples = skills.pool_examples("R1", 0, POOL)
    prompts = [example.prompt for example in examples]
    tokens = encoder.prompts(prompts)
    alike = [prompt for prompt, row in zip(prompts, tokens, strict=True) if len(row) == ALIKE]
    return {
        "generated": generated_pool(encoder, tokens, SHAPES),
        "candidates": candidate_pool(encoder, alike, CANDIDATES, SIZES.sequences),
        "proposed": proposed_pool(encoder.examples(examples), SHAPES.sequences),
    }


def score(folder: Path, out: Path) -> None:
    """Writes the measures of every kind of pool, with and without samples."""
    tokenizer, model = load_tokenizer(str(folder / "model")), load_model(str(folder / "model"))
    encoder = Encoder(tokenizer, get_task("skills", CONFIG.format, tokenizer), LIMITS)
    adapter, _ = load_adapter(folder / "adapter", model.config)
    found = {}
    for kind, pool in pools(encoder).items():
        for sampling in (None, SAMPLING._replace(mode=MASKS[kind])):
            scores = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=sampling)
            name = f"{kind} {sampling is not None}"
            found |= {f"{name} {measure}": values for measure, values in scores.measures.items()}
            if scores.responses is not None:
                found[f"{name} responses"] = scores.responses
    np.savez(out / "scores.npz", **{name: np.asarray(values) for name, values in found.items()})


def main() -> None:
    # So that prompts are seated where rows have ended, and the rows are halved when those of all devices fit.
    long_answers.LONG_ANSWER, continuous.STEPS, continuous.FEWEST_ROWS = 1, 2, SIZES.prompts // 2
    folder = Path(sys.argv[1])
    out = folder / str(jax.device_count())
    run(folder, out)
    score(folder, out)


if __name__ == "__main__":
    main()
