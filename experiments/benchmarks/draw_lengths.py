"""Token lengths of real GSM8K examples, which the benchmark's random sequences have.

    python experiments/benchmarks/draw_lengths.py --model DIR --data gsm8k_train.jsonl

writes gsm8k_lengths.json: prompt (question and task prompt) and response (worked answer and end-of-sequence) of
512 examples, drawn with a fixed seed and counted with the tokenizer of the model folder DIR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from workload import LENGTHS_FILE

from star_jax.checkpoints.hub import load_tokenizer
from star_jax.data.loading import load_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits

COUNT, SEED = 512, 0
SOURCE = (
    "Token lengths of {count} of the {total} GSM8K training examples (drawn by NumPy's default_rng({seed})), counted "
    "with a byte-level BPE of {vocab} tokens trained on the GSM8K and BoolQ training sets: the question with the task "
    "prompt and the beginning-of-sequence, and the worked answer with the end-of-sequence. The first 2**n of them are "
    "spread evenly over the lengths."
)


def bit_reversed(count: int) -> list[int]:
    """0 … count − 1, a power of two, so ordered that the first 2ⁿ are evenly spaced: 0, 4, 2, 6, 1, 5, 3, 7."""
    bits = count.bit_length() - 1
    return [int(f"{number:0{bits}b}"[::-1], 2) for number in range(count)]


def main() -> None:
    """Draws, counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with the tokenizer")
    parser.add_argument("--data", required=True, help="gsm8k_train.jsonl")
    args = parser.parse_args()
    tokenizer, task = load_tokenizer(args.model), get_task("gsm8k")
    examples = load_examples(task, args.data, "train", "error")
    drawn = np.random.default_rng(SEED).choice(len(examples), COUNT, replace=False)
    no_limit = Limits(10**6, 10**6)
    rows = Encoder(tokenizer, task, no_limit).examples([examples[i] for i in drawn])
    source = SOURCE.format(count=COUNT, total=len(examples), seed=SEED, vocab=len(tokenizer))
    ranked = sorted((len(row.tokens), row.prompt_length) for row in rows)
    pairs = [[ranked[i][1], ranked[i][0] - ranked[i][1]] for i in bit_reversed(COUNT)]
    lines = ",\n".join(f"  {json.dumps(pairs[start : start + 12])[1:-1]}" for start in range(0, COUNT, 12))
    text = f'{{\n "source": {json.dumps(source)},\n "lengths": [\n{lines}\n ]\n}}\n'
    Path(LENGTHS_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
