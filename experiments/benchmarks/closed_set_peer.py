"""The peer's side of closed_set.py: Transformers on torch, each prompt read once and its cache reused for all answers.

Prompts of like length form a batch. The output projection sees the positions that predict an answer's token, and no
other. Size of a batch, and whether answers of different lengths are padded to one product or taken length by length,
are tried at the warm-up, and the fastest is timed.
"""

from __future__ import annotations

import os
import time
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
from jinja2 import Template
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

BATCHES = (8, 16, 32)
"""Prompts of a batch that are tried."""

ROWS_AT_ONCE = 2048
"""A batch with all answers has at most so many rows, or its caches would not fit."""


class Bench:
    """A model, tokens of prompts and answers."""

    def __init__(self, workload: dict[str, Any]) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(workload["model"])
        self.model = AutoModelForCausalLM.from_pretrained(workload["model"], dtype=torch.float32).eval()
        template = Template(workload["prompt"].replace("\\n", "\n"), keep_trailing_newline=True)
        texts = [template.render(**row) for row in workload["rows"]]
        # A blank at the end of a prompt belongs to the answer's first token.
        blank = " " * (len(texts[0]) - len(texts[0].rstrip(" ")))
        self.prompts = [self.tokenizer(text.rstrip(" "))["input_ids"] for text in texts]
        end = self.tokenizer.eos_token_id
        self.answers = [[*self.tokenizer(blank + text)["input_ids"], end] for text in workload["answers"]]
        self.log_probs = np.zeros((len(self.prompts), len(self.answers)))

    def warm(self) -> dict[str, Any]:
        """Tries every way twice."""
        tried = {}
        most = min(ROWS_AT_ONCE // len(self.answers), len(self.prompts))
        fitting = [size for size in BATCHES if size <= most] or [most]
        for way in product(fitting, (True, False)):
            self.way = way
            seconds = []
            for _ in range(2):
                began = time.perf_counter()
                self.run()
                seconds.append(time.perf_counter() - began)
            tried[way] = min(seconds)
        self.way = min(tried, key=tried.__getitem__)
        shown = {
            f"{size}, {'padded' if padded else 'by length'}": f"{tried[size, padded]:.2f}" for size, padded in tried
        }
        return {"variant": f"batches of {self.way[0]}, answers {'padded' if self.way[1] else 'by length'}; {shown}"}

    @torch.inference_mode()
    def run(self) -> dict[str, Any]:
        """One pass."""
        size, padded = self.way
        order = sorted(range(len(self.prompts)), key=lambda place: -len(self.prompts[place]))
        for start in range(0, len(order), size):
            places = order[start : start + size]
            self.log_probs[places] = self._batch([self.prompts[place] for place in places], padded)
        return {}

    def check(self) -> dict[str, Any]:
        """Entropy, 1 − the largest probability, the margin, and BALD, which is 0 without samples."""
        powers = np.exp(self.log_probs - self.log_probs.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        ordered = np.sort(shares, axis=1)
        entropy = -(shares * np.log(shares)).sum(axis=1)
        figures = (entropy, 1 - ordered[:, -1], 1 - (ordered[:, -1] - ordered[:, -2]), np.zeros(len(shares)))
        return {"probabilities": np.stack(figures, axis=1).tolist()}

    def _batch(self, prompts: list[list[int]], padded: bool) -> np.ndarray:
        """Log-probabilities of the answers behind some prompts."""
        lengths = torch.tensor([len(one) for one in prompts])
        tokens, mask = _pad(prompts)
        read = self.model.model(tokens, attention_mask=mask, use_cache=True)
        last = read.last_hidden_state[torch.arange(len(prompts)), lengths - 1]
        first = torch.log_softmax(self.model.lm_head(last), dim=-1)
        found = torch.zeros(len(prompts), len(self.answers))
        for number, answer in enumerate(self.answers):
            found[:, number] = first[:, answer[0]]
        longer = sorted((len(one), number) for number, one in enumerate(self.answers) if len(one) > 1)
        groups = [longer] if padded else [list(part) for _, part in groupby(longer, key=lambda pair: pair[0])]
        for group in groups:
            numbers = [number for _, number in group]
            found[:, numbers] += self._rest(read.past_key_values, mask, lengths, [self.answers[one] for one in numbers])
        return found.numpy()

    def _rest(self, cache: DynamicCache, mask: Tensor, lengths: Tensor, answers: list[list[int]]) -> Tensor:
        """Log-probabilities `B×C` of the answers behind their first tokens."""
        count, batch = len(answers), len(lengths)
        read, real = _pad([one[:-1] for one in answers])
        wanted, _ = _pad([one[1:] for one in answers])
        copies = DynamicCache()
        for number, layer in enumerate(cache.layers):
            both = (part.repeat_interleave(count, dim=0) for part in (layer.keys, layer.values))
            copies.update(*both, number)
        hidden = self.model.model(
            read.repeat(batch, 1),
            attention_mask=torch.cat([mask.repeat_interleave(count, dim=0), real.repeat(batch, 1)], dim=1),
            position_ids=lengths.repeat_interleave(count)[:, None] + torch.arange(read.shape[1])[None],
            past_key_values=copies,
            use_cache=True,
        ).last_hidden_state
        counts = real.repeat(batch, 1).bool()
        logits = self.model.lm_head(hidden[counts])
        targets = wanted.repeat(batch, 1)[counts]
        each = logits.gather(1, targets[:, None])[:, 0] - torch.logsumexp(logits, dim=-1)
        sums = torch.zeros(counts.shape).masked_scatter(counts, each).sum(dim=1)
        return sums.reshape(batch, count)


def _pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Right-padded rows and their mask."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return tokens, mask
