"""What all sides are told: shape, sizes, random sequences. Neither JAX nor torch is imported here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TASKS = ("score-k1", "score-k3", "train", "generate", "round")

LENGTHS_FILE = Path(__file__).with_name("gsm8k_lengths.json")

ROWS_FILE = "rows.json"
"""Beside a real model: its rows of text as tokens, and how many of each are the prompt."""

SPECIAL_TOKENS = 3
"""Numbers below are padding, beginning and end of a sequence, which random sequences do not hold."""

SEED = 0


class BenchError(Exception):
    """Something that ends the benchmark; the message is meant for the user as it stands."""


@dataclass(frozen=True)
class Shape:
    """A Llama: width, layers, query heads, key-value heads, inner width of the MLP, vocabulary."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """That of a Llama's config.json."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        return cls(*(config[name] for name in (*names, "intermediate_size", "vocab_size")))

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """(in, out) widths of a layer's seven projections, by their names in a checkpoint."""
        shared = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.width, self.width),
            "self_attn.k_proj": (self.width, shared),
            "self_attn.v_proj": (self.width, shared),
            "self_attn.o_proj": (self.width, self.width),
            "mlp.gate_proj": (self.width, self.mlp),
            "mlp.up_proj": (self.width, self.mlp),
            "mlp.down_proj": (self.mlp, self.width),
        }

    def config(self) -> dict[str, Any]:
        """Fields of a Hugging Face config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "initializer_range": WEIGHT_SPREAD,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }


WEIGHT_SPREAD, LORA_SPREAD = 0.08, 0.02
"""Standard deviations of all matrices of the base model, and of the adapter's B."""


class Sequence(NamedTuple):
    """Random tokens, and how many of them are the prompt; the rest is the response."""

    tokens: np.ndarray
    prompt_length: int

    @property
    def response_length(self) -> int:
        """Tokens behind the prompt."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class Workload:
    """Everything a side needs to know.

    Attributes:
      shape: of the model.
      device: `cpu` or `gpu`.
      folder: where `model/` and `adapter/` lie; None to make random weights in memory.
      real: name of a real model that the folder holds, with rows of text; None for random weights and tokens.
      ends: tokens that end an answer; none where every answer has its full length.
      rank, alpha, dropout: of the LoRA on all seven projections.
      samples: K, dropout passes.
      examples: sequences that are scored and trained on.
      prompts: prompts that are answered.
      new_tokens: of each answer.
      pool, picks, test: sizes of the active-learning round.
      score_batch, train_batch, generate_batch: rows a batch.
      scoring_dropout, training_dropout: star_jax's masks, `shared`, `tied` or `per_token`; a peer's are always per
        token.
      learning_rate, decay_b, gradient_clip: of AdamW; the rate falls to 0 over one pass.
      peak_size: width of the square matrices whose product is the measured peak.
    """

    shape: Shape
    device: str
    folder: str | None
    examples: int
    prompts: int
    pool: int
    picks: int
    test: int
    peak_size: int
    new_tokens: int = 128
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    samples: int = 3
    score_batch: int = 16
    train_batch: int = 8
    generate_batch: int = 64
    scoring_dropout: str = "shared"
    training_dropout: str = "per_token"
    learning_rate: float = 1.5e-4
    decay_b: float = 0.5
    gradient_clip: float = 1.0
    real: str | None = None
    ends: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a pipe."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Workload:
        """The inverse of `to_dict`."""
        return cls(**(raw | {"shape": Shape(**raw["shape"]), "ends": tuple(raw["ends"])}))

    def sequences(self) -> list[Sequence]:
        """All that any side sees: tasks take theirs from the front, the round its test prompts from the end."""
        if self.real is not None:
            assert self.folder is not None
            return read_rows(Path(self.folder) / ROWS_FILE)
        return random_sequences(read_lengths(), self.shape.vocab)

    def pool_sequences(self) -> list[Sequence]:
        """The pool of the round."""
        return self.sequences()[: self.pool]

    def test_prompts(self) -> list[np.ndarray]:
        """The prompts the round's model is judged on."""
        return prompts_of(self.sequences()[-self.test :])


class Outcome(NamedTuple):
    """What a side reports of one run of a task.

    Attributes:
      seconds: from the call until the results are on the host.
      merged: whether LoRA was merged into the weights for what has no dropout.
      merged_samples: whether it was, mask and all, for each Monte-Carlo sample.
      variant: which of several ways this was, or an empty string.
      check: results by name, for the comparison of the sides: `nll` and `entropy` an example, `loss`, `tokens`
        or `picked`.
    """

    seconds: float
    merged: bool
    variant: str
    check: dict[str, list[float]]
    merged_samples: bool = False


def read_lengths() -> list[tuple[int, int]]:
    """(prompt, response) lengths of real examples, tokens."""
    return [(prompt, response) for prompt, response in json.loads(LENGTHS_FILE.read_text())["lengths"]]


def read_rows(path: Path) -> list[Sequence]:
    """The rows that go with a real model."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Sequence(np.asarray(tokens, np.int32), prompt_length) for tokens, prompt_length in rows]


def random_sequences(lengths: list[tuple[int, int]], vocab: int) -> list[Sequence]:
    """Random ids in real lengths: random weights do the same work on any text."""
    rng = np.random.default_rng(SEED)
    return [
        Sequence(rng.integers(SPECIAL_TOKENS, vocab, prompt + response, np.int32), prompt)
        for prompt, response in lengths
    ]


def prompts_of(sequences: list[Sequence]) -> list[np.ndarray]:
    """Tokens of the prompts."""
    return [sequence.tokens[: sequence.prompt_length] for sequence in sequences]
