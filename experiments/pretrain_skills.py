"""Makes the base model of the `skills` benchmark: `python experiments/pretrain_skills.py`.

A Llama-shaped decoder of 0.45 million parameters learns the pretraining corpus of
`star_jax.benchmarks.skills.generator` from a fixed seed, and is written as a Hugging Face folder to
star_jax/benchmarks/skills/model, together with the replay file. Prints the accuracy on the tested skills, which
must be high on the known and near zero on the new ones, and the time taken.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from star_jax.benchmarks.skills import generator as skills
from star_jax.benchmarks.skills.task import SKILLS
from star_jax.checkpoints.huggingface import LanguageModel, save_model
from star_jax.data.batching import Shape, make_batch, prompt_batches
from star_jax.data.examples import Example, Prompt
from star_jax.data.tokenization import Encoder, Limits
from star_jax.inference.generation import generate
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lm_head import logits, output_head
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import Decoder

FOLDER = Path(__file__).parent.parent / "star_jax" / "benchmarks" / "skills" / "model"
LIMITS = Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS)
CONFIG = TransformerConfig(
    vocab_size=len(skills.VOCABULARY),
    hidden_size=96,
    intermediate_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=24,
    max_position_embeddings=64,
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokens; `=` stands alone even where a response follows it without a space."""
    vocabulary = {token: number for number, token in enumerate(skills.VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(skills.ANSWER_MARK, "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=skills.PAD, eos_token=skills.EOS)


def train_step(decoder: Decoder, optimizer: optax.GradientTransformation, params, state, inputs: SequenceInputs):
    def loss_of(params):
        model = LanguageModel(decoder, params)
        scores = logits(hidden_states(model, None, inputs, None), output_head(model))
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, next_tokens(inputs))
        return jnp.mean(losses, where=response_mask(inputs))

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def accuracy_by_skill(model: LanguageModel, encoder: Encoder) -> dict[str, float]:
    examples = skills.test_examples()
    run = jax.jit(partial(generate, width=LIMITS.response, eos_id=encoder.eos_id))
    hits: dict[str, list[bool]] = {}
    shape = Shape(240, LIMITS.prompt, 240 * LIMITS.prompt)
    for batch in prompt_batches(encoder.prompts([e.prompt for e in examples]), [shape]):
        written = jax.device_get(run(model, None, batch.tokens, batch.prompt_lengths))
        for place in np.flatnonzero(batch.row_mask):
            example = examples[batch.index[place]]
            text = encoder.text(written.tokens[place, : written.lengths[place]])
            correct = SKILLS.is_correct(text, example.response)
            hits.setdefault(SKILLS.group(example.prompt), []).append(correct)
    return {skill: float(np.mean(row)) for skill, row in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--replay-rows", type=int, default=6_000)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    began = time.monotonic()

    tokenizer = make_tokenizer()
    encoder = Encoder(tokenizer, SKILLS, LIMITS)
    items = skills.pretraining_items(args.seed, args.items)
    rows = encoder.examples([Example(Prompt(str(i), prompt), answer) for i, (prompt, answer) in enumerate(items)])
    tokens = sum(len(row.tokens) for row in rows)
    print(f"{len(rows)} items, {tokens} tokens, {time.monotonic() - began:.0f} s", flush=True)

    decoder = Decoder(CONFIG)
    init_key, order_key = jax.random.split(jax.random.key(args.seed))
    params = decoder.init(init_key, jnp.zeros((1, LIMITS.prompt), jnp.int32))["params"]
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params))} parameters", flush=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, args.learning_rate, 100, args.steps, args.learning_rate / 30)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    state = optimizer.init(params)
    step = jax.jit(partial(train_step, decoder, optimizer), donate_argnums=(0, 1))

    losses = []
    longest = LIMITS.prompt + LIMITS.response
    shape = Shape(args.batch_size, longest, args.batch_size * longest)
    for number in range(args.steps):
        chosen = np.asarray(jax.random.randint(jax.random.fold_in(order_key, number), (args.batch_size,), 0, len(rows)))
        batch = make_batch([rows[i] for i in chosen], chosen, [shape])
        params, state, loss = step(params, state, SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths))
        losses.append(loss)
        if (number + 1) % 200 == 0:
            mean = float(np.mean([float(value) for value in losses[-200:]]))
            print(f"step {number + 1}: loss {mean:.4f} nats a token, {time.monotonic() - began:.0f} s", flush=True)

    model = LanguageModel(decoder, params)
    scores = accuracy_by_skill(model, encoder)
    for kind, names in (("known", skills.KNOWN_SKILLS), ("new", skills.NEW_SKILLS)):
        listed = "  ".join(f"{name} {scores[name]:.3f}" for name in names)
        print(f"{kind}: {np.mean([scores[name] for name in names]):.3f}   ({listed})")

    save_model(model, args.out)
    tokenizer.save_pretrained(args.out)
    with (args.out / "replay.jsonl").open("w", encoding="utf-8") as file:
        for prompt, answer in skills.replay_items(args.seed, args.replay_rows):
            file.write(json.dumps({"question": prompt, "answer": answer}) + "\n")
    size = sum(file.stat().st_size for file in args.out.iterdir()) / 1e6
    print(f"{args.out.name}: {size:.2f} MB, {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
