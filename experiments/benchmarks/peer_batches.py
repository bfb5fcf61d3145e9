"""The peer's batches: rows of like length padded to one width, and the two ways of getting statistics and loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from peer_model import PeerModel
from torch import Tensor, nn
from workload import Sequence

IGNORED = -100
"""Label of a position that has no part in a loss, as Transformers has it."""


def neighbours(lengths: list[int], size: int) -> list[list[int]]:
    """Places of items that are neighbours in length, `size` at a time."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


class Batch(ABC):
    """Right-padded rows of a data set.

    Attributes:
      model: that reads them.
      tokens: `B×T`.
      numbers: `B` the rows' places in the data set.
    """

    def __init__(self, model: PeerModel, rows: list[Sequence], numbers: list[int]) -> None:
        self.model = model
        chosen = [rows[i] for i in numbers]
        tokens = np.zeros((len(chosen), max(len(row.tokens) for row in chosen)), np.int64)
        for place, row in enumerate(chosen):
            tokens[place, : len(row.tokens)] = row.tokens
        self.tokens, self.numbers = self._put(tokens), self._put(np.asarray(numbers))
        self._prepare(chosen, tokens)

    def _put(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.model.device)

    @abstractmethod
    def _prepare(self, rows: list[Sequence], tokens: np.ndarray) -> None:
        """Makes what else there has to be on the device; `tokens` are those of the rows, padded."""

    @abstractmethod
    def statistics(self) -> Tensor:
        """`2×B` float32: NLL and entropy of the responses, nats, summed over their tokens."""

    @abstractmethod
    def loss(self) -> Tensor:
        """Mean cross-entropy of the response tokens, nats."""


class PlainBatch(Batch):
    """Everything from the model's own call: with a mask, logits of all positions, and its own loss of labels."""

    def _prepare(self, rows: list[Sequence], tokens: np.ndarray) -> None:
        places = np.arange(tokens.shape[1])
        real = places < np.asarray([len(row.tokens) for row in rows])[:, None]
        response = real & (places >= np.asarray([row.prompt_length for row in rows])[:, None])
        self.mask = self._put(real.astype(np.int64))
        self.labels = self._put(np.where(response, tokens, IGNORED))

    def statistics(self) -> Tensor:
        """Of every position, the responses' picked out at the end."""
        logits = self.model.peft(input_ids=self.tokens, attention_mask=self.mask).logits
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        # A position predicts the token behind it.
        nll = -log_probs[:, :-1].gather(2, self.tokens[:, 1:, None])[..., 0]
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)[:, :-1]
        return (torch.stack([nll, entropy]) * (self.labels[:, 1:] != IGNORED)).sum(dim=-1)

    def loss(self) -> Tensor:
        """The model's own."""
        return self.model.peft(input_ids=self.tokens, attention_mask=self.mask, labels=self.labels).loss


class TunedBatch(Batch):
    """Logits of the positions that predict a response alone.

    There is no mask: right-padded rows need none under causal attention, and sdpa takes its causal kernel.
    """

    def _prepare(self, rows: list[Sequence], tokens: np.ndarray) -> None:
        width = tokens.shape[1]
        # M positions in the flattened rows, the M tokens that they predict, and the row each belongs to.
        places = [
            np.arange(row.prompt_length - 1, len(row.tokens) - 1) + place * width for place, row in enumerate(rows)
        ]
        targets = [row.tokens[row.prompt_length :].astype(np.int64) for row in rows]
        owners = [np.full(row.response_length, place) for place, row in enumerate(rows)]
        self.places, self.targets, self.owners = (
            self._put(np.concatenate(parts)) for parts in (places, targets, owners)
        )

    def statistics(self) -> Tensor:
        """Of the responses' positions, added up by row."""
        log_probs = torch.log_softmax(self._logits(), dim=-1)
        nll = -log_probs.gather(1, self.targets[:, None])[:, 0]
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        sums = torch.zeros(2, len(self.tokens), device=self.model.device)
        return sums.index_add_(1, self.owners, torch.stack([nll, entropy]))

    def loss(self) -> Tensor:
        """Of the logits there are."""
        return nn.functional.cross_entropy(self._logits(), self.targets)

    def _logits(self) -> Tensor:
        """`M×V` float32."""
        causal = self.model.causal
        hidden = causal.model(input_ids=self.tokens, use_cache=False).last_hidden_state
        return causal.lm_head(hidden.flatten(0, 1)[self.places]).float()


class Prompts(NamedTuple):
    """Left-padded prompts `B×P`, their mask, and their places in the data set."""

    tokens: Tensor
    mask: Tensor
    numbers: list[int]


def prompt_batches(prompts: list[np.ndarray], size: int, device: torch.device) -> list[Prompts]:
    """Batches of neighbours in length."""
    batches = []
    for numbers in neighbours([len(prompt) for prompt in prompts], size):
        width = max(len(prompts[i]) for i in numbers)
        tokens, mask = np.zeros((2, len(numbers), width), np.int64)
        for place, i in enumerate(numbers):
            tokens[place, width - len(prompts[i]) :] = prompts[i]
            mask[place, width - len(prompts[i]) :] = 1
        batches.append(Prompts(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device), numbers))
    return batches
