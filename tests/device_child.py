"""What `test_devices` runs in a process of its own, which sees a certain number of devices.

    python tests/device_child.py FOLDER

reads an adapter from FOLDER/adapter, and writes FOLDER/COUNT: a run of the embedded benchmark, and scores.npz, the
measures of every kind of pool under that adapter.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from star_jax.acquisition.pool_scoring import (
    BatchSizes,
    Pool,
    Sampling,
    candidate_pool,
    choose_shapes,
    generated_pool,
    proposed_pool,
    score_pool,
)
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data import skills_benchmark as skills
from star_jax.data.encoding import Encoder, Limits
from star_jax.data.tasks import get_task
from star_jax.experiment import run_experiment
from star_jax.models.checkpoint_hf import load_model
from star_jax.models.folders import load_tokenizer
from star_jax.models.peft_format import load_adapter
from star_jax.runtime.progress import Progress

POOL = 50
"""No multiple of 8: on eight devices some have rows that only fill a batch up, and some nothing else."""

SIZES = BatchSizes(prompts=6, sequences=4)
SAMPLING = Sampling(2, 0.1, "shared")
TARGETS = ("q_proj", "down_proj")
CONFIG = ExperimentConfig(
    strategies=("star",),
    lora=LoraConfig(rank=2, alpha=4, dropout=SAMPLING.rate, training_dropout="tied", targets=TARGETS),
    training=TrainingConfig(learning_rate=5e-3, epochs=2, batch_size=10, replay="embedded:skills", replay_rows=3),
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


def pools() -> dict[str, Pool]:
    """One of each kind, of the same prompts."""
    limits = Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS)
    encoder = Encoder(load_tokenizer("embedded:skills"), get_task("skills"), limits)
    examples = skills.pool_examples("R0", 5, POOL)
    prompts, rows = [example.prompt for example in examples], encoder.examples(examples)
    shapes = choose_shapes(
        [row.prompt_length for row in rows],
        [len(row.tokens) for row in rows],
        limits.prompt + limits.response,
        SIZES,
    )
    return {
        "generated": generated_pool(encoder, encoder.prompts(prompts), shapes),
        "candidates": candidate_pool(encoder, prompts, (" 1", " 2 3", " 4"), SIZES.sequences),
        "proposed": proposed_pool(rows, shapes.sequences),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    out = folder / str(jax.device_count())
    config = ExperimentConfig(**{**vars(CONFIG), "output_dir": str(out)})
    run_experiment(config, Progress("silent"))
    model = load_model("embedded:skills")
    adapter, _ = load_adapter(folder / "adapter", model.config)
    found = {}
    for kind, pool in pools().items():
        for sampling in (None, SAMPLING):
            scores = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=sampling)
            found |= {f"{kind} {sampling is not None} {name}": values for name, values in scores.measures.items()}
            if scores.responses is not None:
                found[f"{kind} {sampling is not None} responses"] = scores.responses
    np.savez(out / "scores.npz", **{name: np.asarray(values) for name, values in found.items()})


if __name__ == "__main__":
    main()
