"""What continuous batching saves, by count: seconds of decoding for answers of known lengths, under three schedules.

    python experiments/benchmarks/continuous_batching.py
    python experiments/benchmarks/continuous_batching.py --rows 128 --step 120 3.5 0.0107

Answers have the lengths of GSM8K's (`gsm8k_lengths.json`), are drawn from a geometric distribution, end at once but for
a sixth that is cut at the limit, or are all as long as the limit. A step takes a fixed time, a time for each row, and
one for each row and slot of its cache, milliseconds; those of SmolLM2-135M in float32 on one core of a CPU with AVX-512
are the default. Reading prompts takes the same time in all schedules and is not counted.
"""

from __future__ import annotations

import argparse
from collections import deque
from typing import NamedTuple

import numpy as np
from workload import read_lengths

from star_jax.acquisition.pools import PROMPT_SHAPES
from star_jax.data.bucketing import prompt_shapes
from star_jax.inference.continuous import FEWEST_ROWS, HALVINGS, SEATED_AT_ONCE, STEPS, Plan
from star_jax.inference.slots import Writing

SEAT_PASSES = 3
"""Times that seating rows goes through the cache."""


class Cost(NamedTuple):
    """Milliseconds of a step: fixed, for each row, and for each row and slot."""

    fixed: float
    row: float
    slot: float

    def of(self, rows: int, slots: int) -> float:
        return self.fixed + rows * (self.row + slots * self.slot)


def waiting_for_the_longest(prompts: np.ndarray, lengths: np.ndarray, rows: int, limit: int, cost: Cost) -> float:
    """Batch after batch, each until its longest answer ends."""
    parts = [slice(start, start + rows) for start in range(0, len(lengths), rows)]
    return sum((lengths[part].max() - 1) * cost.of(rows, prompts[part].max() + limit) for part in parts)


def halved(prompts: np.ndarray, lengths: np.ndarray, rows: int, limit: int, cost: Cost) -> float:
    """The same, with the rows that go on moved to half as many as soon as they fit."""
    total = 0.0
    for start in range(0, len(lengths), rows):
        part, size = lengths[start : start + rows], rows
        slots = prompts[start : start + rows].max() + limit
        for step in range(1, part.max()):
            while size // 2 >= max(FEWEST_ROWS, (part > step).sum()) and size > rows >> HALVINGS:
                size //= 2
            total += cost.of(size, slots)
    return total


def continuous(prompts: np.ndarray, lengths: np.ndarray, rows: int, limit: int, cost: Cost) -> float:
    """As `star_jax.inference.continuous` does it on one device."""
    waiting, going, widths = deque(zip(lengths.tolist(), prompts.tolist(), strict=True)), *np.zeros((2, rows), int)
    plan, total, used, slots, few = Plan(Writing(limit, ())), 0.0, 0, 0, rows - max(1, rows // SEATED_AT_ONCE)
    while waiting or going.any():
        if waiting and (going > 0).sum() <= few:
            if not going.any():
                used = waiting[0][1]
            for row in np.flatnonzero(going == 0)[: len(waiting)]:
                going[row], widths[row] = waiting.popleft()
            total += SEAT_PASSES * rows * slots * cost.slot
        if not waiting:
            while len(going) // 2 >= max(FEWEST_ROWS, (going > 0).sum()) and len(going) > rows >> HALVINGS:
                order = np.argsort(-going)[: len(going) // 2]
                going, widths = going[order], widths[order]
        half = len(going) // 2 if len(going) > rows >> HALVINGS and len(going) // 2 >= FEWEST_ROWS else 0
        fewer = few if waiting else half
        sizes = plan.sizes(int(widths[going > 0].max()))
        slots = next((size for size in sizes if size >= used + STEPS), sizes[-1])
        for _ in range(STEPS):
            if (going > 0).sum() <= fewer:
                break
            total, used, going = total + cost.of(len(going), slots), used + 1, np.maximum(going - 1, 0)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="that are written at once (64)")
    parser.add_argument("--limit", type=int, default=128, help="most tokens of an answer (128)")
    parser.add_argument("--step", type=float, nargs=3, default=(120.0, 3.5, 0.0107), help="(120 3.5 0.0107)")
    args = parser.parse_args()
    known, rng = np.asarray(read_lengths()), np.random.default_rng(0)
    shapes, count = prompt_shapes(np.minimum(known[:, 0], 128), args.rows, PROMPT_SHAPES), len(known)
    widths = np.asarray([shape.width for shape in shapes])
    prompts = widths[np.searchsorted(widths, np.sort(np.minimum(known[:, 0], 128))[::-1])]
    kinds = {
        "GSM8K's answers": rng.permutation(known[:, 1]),
        "geometric, mean 60": rng.geometric(1 / 60, count),
        "five of six end at once": np.where(rng.random(count) < 1 / 6, args.limit, 1),
        "all cut": np.full(count, args.limit),
    }
    for name, lengths in kinds.items():
        given = (prompts, np.minimum(lengths, args.limit), args.rows, args.limit, Cost(*args.step))
        seconds = [schedule(*given) / 1000 for schedule in (waiting_for_the_longest, halved, continuous)]
        print(f"{name:24} longest {seconds[0]:4.0f} s, halved {seconds[1]:4.0f} s, continuous {seconds[2]:4.0f} s")


if __name__ == "__main__":
    main()
