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

from star_jax.command_line import parse_experiment
from star_jax.data import skills_benchmark as skills
from star_jax.data.batching import Encoder, Limits
from star_jax.data.tasks import get_task
from star_jax.evaluation.evaluator import base_uncertainty, evaluate, prepare_test_set
from star_jax.experiment import configure_jax, load_base, load_replay
from star_jax.models.folders import load_tokenizer
from star_jax.training.trainer import fit

LONGER = ("--training.epochs", "30", "--training.learning-rate", "2.5e-3", "--training.replay-rows", "24")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args, overrides = parser.parse_known_args()
    config = parse_experiment([*LONGER, *overrides])
    configure_jax()

    task = get_task("skills")
    encoder = Encoder(
        load_tokenizer(config.model.path), task, Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS)
    )
    model = load_base(config)
    test = prepare_test_set(encoder, skills.test_examples(), config.evaluation.batch_size)
    base = base_uncertainty(model, None, test)

    def report(title: str, adapter) -> None:
        figures = evaluate(model, adapter, test, task, encoder, config.evaluation, base=base).metrics
        groups = figures["group_accuracy"]
        known, new = (np.mean([groups[name] for name in names]) for names in (skills.KNOWN_SKILLS, skills.NEW_SKILLS))
        listed = "  ".join(f"{name} {groups[name]:.3f}" for name in skills.TESTED_SKILLS)
        print(f"{title}: all {figures['accuracy']:.3f}, known {known:.3f}, new {new:.3f}, ECE {figures['ece']:.3f}")
        print(f"  {listed}", flush=True)

    report("base model", None)
    began = time.monotonic()
    adapter, loss = fit(
        jax.random.key(args.seed),
        model,
        encoder.examples(skills.balanced_labels(args.seed, args.labels)),
        load_replay(config, task, encoder),
        limits=encoder.limits,
        lora=config.lora,
        config=config.training,
    )
    seconds = time.monotonic() - began
    report(f"LoRA on {args.labels} balanced labels (loss {loss:.4f}, {seconds:.0f} s)", adapter)


if __name__ == "__main__":
    main()
