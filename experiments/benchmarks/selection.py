"""How long each strategy that sees vectors takes to pick from a large pool, and the memory that this takes.

    python experiments/benchmarks/selection.py [--pool 100000] [--width 256] [--count 500] [--strategies NAME,NAME]

The features are random, in clusters; making them for a real pool is not counted. A twentieth of the pool is labelled.
Each strategy runs in a process of its own. Seconds are those of the second call, on the clock and of all cores
together; the first call, which compiles, is in brackets. Peak memory is that of the process less what it had before the
first call, features included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Measure
from star_jax.acquisition.strategy import Query, check_picks, get_strategy, pick
from star_jax.registry import STRATEGIES

CLUSTERS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=100_000, help="N, examples")
    parser.add_argument("--width", type=int, default=256, help="D, of every vector")
    parser.add_argument("--count", type=int, default=500, help="k, picks")
    parser.add_argument("--strategies", help="names, comma separated; those that see vectors when left out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(measure(args.child, args.pool, args.width, args.count))
        return
    names = args.strategies.split(",") if args.strategies else seeing_vectors()
    place = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{args.count} of {args.pool:,} with vectors of {args.width}, {place}\n")
    print("| strategy | seconds | (first call) | of all cores | peak memory, MB |\n|---|---|---|---|---|")
    sizes = [f"--pool={args.pool}", f"--width={args.width}", f"--count={args.count}"]
    for name in names:
        command = [sys.executable, __file__, *sizes, f"--child={name}"]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def seeing_vectors() -> list[str]:
    """Names of the strategies that need more than measures."""
    return [
        name for name in STRATEGIES.names() if not all(isinstance(need, Measure) for need in get_strategy(name).needs)
    ]


def measure(name: str, size: int, width: int, count: int) -> str:
    """One row of the table."""
    rng = np.random.default_rng(0)
    before = peak()
    strategy = get_strategy(name)
    unlabelled = rng.random(size) < 0.95
    features = [
        rng.random(size, np.float32)
        if isinstance(need, Measure)
        else rng.standard_normal((CLUSTERS, width), np.float32)[rng.integers(CLUSTERS, size=size)]
        + rng.standard_normal((size, width), np.float32)
        for need in strategy.needs
    ]
    arrays = ([*map(jnp.asarray, features)], jnp.asarray(unlabelled), Query(jnp.asarray(0), 1, count))
    program = jax.jit(lambda key, features, unlabelled, query: pick(strategy, key, features, unlabelled, query)[0])
    seconds, of_cores = [], 0.0
    for number in range(2):
        began, spent = time.perf_counter(), time.process_time()
        found = np.asarray(program(jax.random.key(number), *arrays))
        seconds.append(time.perf_counter() - began)
        of_cores = time.process_time() - spent
        check_picks(strategy, found, unlabelled)
    return f"| {name} | {seconds[1]:.1f} | ({seconds[0]:.1f}) | {of_cores:.1f} | {peak() - before:,.0f} |"


def peak() -> float:
    """Most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
