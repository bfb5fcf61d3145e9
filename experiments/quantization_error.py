"""What int8 and NF4 projections do to a model's predictions.

    python experiments/quantization_error.py [--model DIR --task gsm8k --data FILE]

compares the quantised base model with the full one on gold responses: logits, distributions, the best token, and the
bytes of the projections against bfloat16. Without arguments, the model that ships with the package, on its test set.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import LanguageModel, load_model
from star_jax.data.batching import sequence_batches
from star_jax.data.bucketing import budget_shapes
from star_jax.data.loading import load_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.environment import configure_jax
from star_jax.models.lm_head import at_positions, chunk_size, logits, output_head
from star_jax.models.sequences import SequenceInputs, hidden_states, response_mask
from star_jax.ops.quantization import projection_bytes

BATCH_SIZE = 16


@jax.jit
def compare(full: LanguageModel, small: LanguageModel, inputs: SequenceInputs, row_mask: jax.Array):
    """Largest and mean |Δ logit|, mean KL in nats and share of equal best tokens, as masked sums, and the count."""
    heads = [output_head(m) for m in (full, small)]

    def at(*hidden: jax.Array) -> tuple[jax.Array, ...]:
        ours, theirs = (logits(states, head) for states, head in zip(hidden, heads, strict=True))
        log_p, log_q = jax.nn.log_softmax(ours), jax.nn.log_softmax(theirs)
        error = jnp.abs(ours - theirs)
        divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        same = (ours.argmax(-1) == theirs.argmax(-1)).astype(jnp.float32)
        return error.max(-1), error.mean(-1), divergence, same

    mask = response_mask(inputs) & row_mask[:, None]
    hidden = (hidden_states(m, None, inputs, None) for m in (full, small))
    largest, *values = at_positions(at, mask, *hidden, chunk=chunk_size(heads[0], samples=2))
    return jnp.max(largest), jnp.stack([jnp.sum(value) for value in values]), jnp.sum(mask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:skills")
    parser.add_argument("--task", default="skills")
    parser.add_argument("--data")
    parser.add_argument("--examples", type=int, default=720)
    args = parser.parse_args()
    configure_jax()
    task = get_task(args.task)
    examples = load_examples(task, args.data, "train") if args.data else skills.test_examples()
    limits = Limits(9, 6) if args.task == "skills" else Limits(256, 256, "truncate-left")
    encoder = Encoder(load_tokenizer(args.model), task, limits)
    rows = encoder.examples(examples[: args.examples])
    lengths = [len(row.tokens) for row in rows]
    batches = list(sequence_batches(rows, budget_shapes(lengths, BATCH_SIZE, 3, max(lengths))))
    full = load_model(args.model)
    wide = projection_bytes(full.params) / 2
    print(f"{args.model}, {min(args.examples, len(examples))} examples")
    for kind in ("int8", "nf4"):
        small = load_model(args.model, quantization=kind)
        parts = []
        for batch in batches:
            inputs = SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)
            parts.append(jax.device_get(compare(full, small, inputs, jnp.asarray(batch.row_mask))))
        worst, sums, counts = (np.stack(part) for part in zip(*parts, strict=True))
        mean, divergence, same = sums.sum(0) / counts.sum()
        print(
            f"{kind}: |Δ logit| mean {mean:.4f}, largest {worst.max():.3f}; KL {divergence:.2e} nats a token; "
            f"best token the same {same:.4f}; projections {projection_bytes(small.params) / wide:.3f} of bfloat16"
        )


if __name__ == "__main__":
    main()
