"""A run folder as a run has left it that waits for its first labels."""

from star_jax.config import ExperimentConfig, LoopConfig
from star_jax.runs.files import write_yaml_atomic

LOOP = LoopConfig(initial_labels=4, labels_per_round=2, rounds=3)


def make_run(root, strategy, seed, **settings):
    run = root / strategy / f"seed-{seed}"
    config = ExperimentConfig(output_dir=str(root), strategies=(strategy,), seeds=(seed,), loop=LOOP, **settings)
    (run / "rounds").mkdir(parents=True)
    write_yaml_atomic(run / "config.yaml", config.to_dict())
    return run
