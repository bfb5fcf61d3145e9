"""What the embedded benchmark can show at best: `python experiments/skills_capacity.py`.

Prints the base model's accuracy on the tested skills it knows and on those it has never seen, and that of a
LoRA trained on a balanced pool of 2,000 labels. Settings are those of configs/quickstart.yaml but for `LONGER`:
with so many labels there is more to fit. Flags of `star_jax.run` replace both.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np

from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import BatchSizes, choose_shapes
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import open_folder
from star_jax.cli.run import parse_experiment
from star_jax.data.run_data import tokenize_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.environment import configure_jax
from star_jax.evaluation.evaluator import UNCERTAINTY, evaluate, prepare_test_set
from star_jax.experiment.setup import load_base, load_replay
from star_jax.training.trainer import TrainingRows, fit, training_shapes

LONGER = ("--training.epochs", "30", "--training.learning-rate", "2.5e-3", "--training.replay-rows", "24")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args, overrides = parser.parse_known_args()
    config = parse_experiment([*LONGER, *overrides])
    configure_jax()

    task = get_task("skills")
    folder = open_folder(config.model.path)
    encoder = Encoder(folder.tokenizer, task, Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS))
    model = load_base(config, folder)
    tokens, longest = (
        tokenize_examples(encoder, skills.test_examples()),
        encoder.limits.prompt + encoder.limits.response,
    )
    sizes = BatchSizes(config.generation.batch_size, config.scoring.batch_size)
    lengths = [len(row.tokens) for row in tokens.rows]
    test = prepare_test_set(task, encoder, tokens, choose_shapes([*map(len, tokens.prompts)], lengths, longest, sizes))
    base = np.asarray(score_pool(model, None, test.prompts).measures[UNCERTAINTY])

    def report(title: str, adapter) -> None:
        figures = evaluate(model, adapter, test, config.evaluation, base=base).metrics
        groups = figures["group_accuracy"]
        known, new = (np.mean([groups[name] for name in names]) for names in (skills.KNOWN_SKILLS, skills.NEW_SKILLS))
        listed = "  ".join(f"{name} {groups[name]:.3f}" for name in skills.TESTED_SKILLS)
        print(f"{title}: all {figures['accuracy']:.3f}, known {known:.3f}, new {new:.3f}, ECE {figures['ece']:.3f}")
        print(f"  {listed}", flush=True)

    report("base model", None)
    began = time.monotonic()
    labelled = encoder.examples(skills.balanced_labels(args.seed, args.labels))
    replay = load_replay(config, task, encoder, folder)
    known, old = ([len(row.tokens) for row in some] for some in (labelled, replay))
    data = TrainingRows(labelled, replay, training_shapes(known, old, longest, config.training))
    adapter, loss, _ = fit(jax.random.key(args.seed), model, data, config.lora, config.training)
    seconds = time.monotonic() - began
    report(f"LoRA on {args.labels} balanced labels (loss {loss:.4f}, {seconds:.0f} s)", adapter)


if __name__ == "__main__":
    main()
