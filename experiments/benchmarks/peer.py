"""The peer's side: Transformers and PEFT on torch, in two ways of writing it.

Both sort by length, batch, and run under `inference_mode` with sdpa attention.

- `plain` is what the libraries' guides show: the model as PEFT loads it, called with tokens and mask (and labels),
  logits of every position, and `generate` with the cache it takes by default.
- `tuned` is written by somebody who looks for time. The output projection sees only the positions that predict a
  response, and where there are several good ways (LoRA merged or not, kind of cache, dtype of the LoRA that is
  trained) all are tried before anything is timed, and the fastest is taken. `plain` trains in the same dtype.
"""

from __future__ import annotations

import math
import os
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

import numpy as np
import torch
from peer_batches import Batch, PlainBatch, Prompts, TunedBatch, neighbours, prompt_batches
from peer_model import SCORED, TRAINED, PeerModel
from torch import Tensor, nn
from transformers import GenerationConfig, get_linear_schedule_with_warmup
from workload import SEED, Outcome, Sequence, Workload, prompts_of

PACKAGES = ("torch", "transformers", "peft")

WAYS: dict[str, type[Batch]] = {"plain": PlainBatch, "tuned": TunedBatch}

CHOICES = {
    "score-k1": ("score",),
    "train": ("train",),
    "generate": ("generate", "batch"),
    "round": ("train", "generate"),
}
"""What there is to choose in a task."""

PROBES, PROBE_SECONDS = 3, 10.0
"""Timings of each way there is to choose from, the first of which warms up; but no more once they took so long: beside
answers of a real model, which take as much each time, warming up is nothing."""

BATCH_PARTS = (1, 2, 4)
"""Parts of the usual batch that are tried where answers end by themselves: small batches wait less for the longest."""

PLAIN = {"score": "not merged", "generate": "not merged, dynamic cache", "batch": ""}
"""What is chosen already in the plain way."""

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def accelerator() -> str | None:
    """Name of the GPU that torch computes on, or None."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def most_bytes() -> int | None:
    """The most memory that tensors of this process have taken on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class Bench:
    """The tasks in one dtype, with their model and batches."""

    def __init__(self, workload: Workload, dtype: str) -> None:
        self.workload, self.dtype = workload, getattr(torch, dtype)
        self.model = PeerModel(workload, self.dtype)
        sequences = workload.sequences()
        self.rows, self.pool_rows = sequences[: workload.examples], workload.pool_sequences()
        self.batches = {way: self._score_batches(self.rows, way) for way in WAYS}
        self.pool = {way: self._score_batches(self.pool_rows, way) for way in WAYS}
        usual = min(workload.generate_batch, workload.prompts)
        sizes = {usual // part or 1 for part in (BATCH_PARTS if workload.ends else (1,))}
        asked = prompts_of(sequences[: workload.prompts])
        self.prompts = {f"batches of {size}": self._prompt_batches(asked, size) for size in sorted(sizes)[::-1]}
        self.prompts[""] = self.prompts[f"batches of {usual}"]
        self.test = self._prompt_batches(workload.test_prompts(), workload.generate_batch)
        self.fastest: dict[str, str] = {}
        self.chosen: dict[str, Mapping[str, str]] = {"plain": ChainMap(PLAIN, self.fastest), "tuned": self.fastest}

    def choose(self, task: str, way: str) -> dict[str, float]:
        """Tries all there is to choose from in a task and keeps the fastest; the least seconds of each.

        The dtype that LoRA is trained in is tried in the tuned way, for both.
        """
        tried: dict[str, float] = {}
        for choice in CHOICES.get(task, ()):
            if choice in self.chosen[way]:
                continue
            options = self._options(choice)
            if len(options) > 1:
                seconds = {name: self._probe(function) for name, function in options.items()}
                tried |= seconds
                self.fastest[choice] = min(seconds, key=seconds.__getitem__)
            else:
                [self.fastest[choice]] = options
        return tried

    def run(self, task: str, way: str) -> Outcome:
        """One timed run of a task; merging is not part of the time, except in a round, where the adapter is new."""
        torch.manual_seed(SEED)
        tasks: dict[str, Callable[[str], dict[str, list[float]]]] = {
            "score-k1": self._score_once,
            "score-k3": self._score_samples,
            "train": self._train,
            "generate": self._generate,
            "round": self._round,
        }
        variants = [self.chosen[way][choice] for choice in CHOICES.get(task, ())]
        merged = any(variant.startswith("merged") for variant in variants)
        with self.model.adapter(SCORED, merged and task != "round"):
            self.model.wait()
            began = time.perf_counter()
            check = tasks[task](way)
            self.model.wait()
            seconds = time.perf_counter() - began
        return Outcome(seconds, merged, "; ".join(filter(None, variants)), check)

    def multiply(self, times: int) -> None:
        """Takes the product of two square matrices so many times."""
        for _ in range(times):
            torch.matmul(*self._factors)
        self.model.wait()

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        square = (self.workload.peak_size, self.workload.peak_size)
        left, right = torch.randn(2, *square, dtype=self.dtype, device=self.model.device)
        return left, right

    # What is tried.

    def _options(self, choice: str) -> dict[str, Callable[[], object]]:
        """Name -> a short run of each way of doing something."""
        merging = {"merged": True, "not merged": False}
        if choice == "score":
            return {name: partial(self._probe_scoring, merged) for name, merged in merging.items()}
        if choice == "generate":
            return {
                f"{name}, {cache} cache": partial(self._probe_generating, merged, cache)
                for name, merged in merging.items()
                for cache in ("dynamic", "static")
            }
        if choice == "batch":
            return {name: partial(self._probe_batches, name) for name in self.prompts if name}
        names = ["float32 LoRA"]
        if self.dtype != torch.float32:
            names = ["float32 LoRA with autocast", "LoRA in the model's dtype"]
        few = self.rows[: 2 * self.workload.train_batch]
        return {name: partial(self._fit, few, "tuned", name) for name in names}

    def _probe(self, function: Callable[[], object]) -> float:
        seconds: list[float] = []
        while len(seconds) < PROBES and sum(seconds) < PROBE_SECONDS:
            self.model.wait()
            began = time.perf_counter()
            function()
            self.model.wait()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    def _probe_scoring(self, merged: bool) -> None:
        with self.model.adapter(SCORED, merged):
            self._measures(self.batches["tuned"][-1:], len(self.rows))

    def _probe_generating(self, merged: bool, cache: str) -> None:
        with self.model.adapter(SCORED, merged):
            self._answers(self.prompts[""][-1:], cache, self.workload.new_tokens)

    def _probe_batches(self, size: str) -> None:
        with self.model.adapter(SCORED, self.fastest["generate"].startswith("merged")):
            self._answers(self.prompts[size], self._cache("tuned"), self.workload.new_tokens)

    # Scoring.

    def _score_batches(self, rows: list[Sequence], way: str) -> list[Batch]:
        index = neighbours([len(row.tokens) for row in rows], self.workload.score_batch)
        return [WAYS[way](self.model, rows, numbers) for numbers in index]

    @torch.inference_mode()
    def _scores(self, batches: list[Batch], count: int, samples: int = 1) -> Tensor:
        """`2×count`, averaged over passes."""
        scores = torch.zeros(2, count, device=self.model.device)
        for batch in batches:
            scores[:, batch.numbers] = sum(batch.statistics() for _ in range(samples)) / samples
        return scores.cpu()

    def _measures(self, batches: list[Batch], count: int, samples: int = 1) -> dict[str, list[float]]:
        nll, entropy = self._scores(batches, count, samples).tolist()
        return {"nll": nll, "entropy": entropy}

    def _score_once(self, way: str) -> dict[str, list[float]]:
        return self._measures(self.batches[way], len(self.rows))

    def _score_samples(self, way: str) -> dict[str, list[float]]:
        with self.model.dropout(SCORED):
            return self._measures(self.batches[way], len(self.rows), self.workload.samples)

    # Training.

    def _train(self, way: str) -> dict[str, list[float]]:
        return {"loss": [self._fit(self.rows, way, self.chosen[way]["train"])]}

    def _fit(self, rows: list[Sequence], way: str, variant: str) -> float:
        """One pass of AdamW over a fresh LoRA, in batches of like length; the mean loss, nats a token."""
        workload = self.workload
        factors = self.model.fresh_adapter(self.dtype if variant == "LoRA in the model's dtype" else torch.float32)
        groups = [
            {"params": factors["lora_A"], "weight_decay": 0.0},
            {"params": factors["lora_B"], "weight_decay": workload.decay_b},
        ]
        parameters = [*factors["lora_A"], *factors["lora_B"]]
        optimizer = torch.optim.AdamW(groups, lr=workload.learning_rate, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, math.ceil(len(rows) / workload.train_batch))
        autocast: AbstractContextManager = nullcontext()
        losses, tokens = torch.zeros((), device=self.model.device), 0
        with self.model.dropout(TRAINED):
            for numbers in self._train_order(rows):
                batch = WAYS[way](self.model, rows, numbers)
                if variant.endswith("autocast"):
                    autocast = torch.autocast(self.model.device.type, self.dtype)
                with autocast:
                    loss = batch.loss()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, workload.gradient_clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                targets = sum(rows[i].response_length for i in numbers)
                losses += loss.detach() * targets
                tokens += targets
        return float(losses) / tokens

    def _train_order(self, rows: list[Sequence]) -> list[list[int]]:
        """Batches of neighbours in length, in random order."""
        groups = neighbours([len(row.tokens) for row in rows], self.workload.train_batch)
        return [groups[i] for i in torch.randperm(len(groups)).tolist()]

    # Generation.

    def _prompt_batches(self, prompts: list[np.ndarray], size: int) -> list[Prompts]:
        return prompt_batches(prompts, size, self.model.device)

    @torch.inference_mode()
    def _answers(self, batches: list[Prompts], cache: str, width: int) -> dict[int, list[int]]:
        """Greedy answers of `width` tokens by the places of their prompts."""
        config = GenerationConfig(
            max_new_tokens=width,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=list(self.workload.ends) or None,
            cache_implementation="static" if cache == "static" else None,
        )
        answers: dict[int, list[int]] = {}
        for tokens, mask, numbers in batches:
            written = self.model.causal.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
            written = written[:, tokens.shape[1] :]
            if written.shape[1] != width and not self.workload.ends:
                raise RuntimeError(f"generate wrote {written.shape[1]} tokens instead of {width}")
            written = nn.functional.pad(written, (0, width - written.shape[1]))  # what follows an end is 0, as ours
            answers |= dict(zip(numbers, written.tolist(), strict=True))
        return answers

    def _cache(self, way: str) -> str:
        return "static" if "static" in self.chosen[way]["generate"] else "dynamic"

    def _generate(self, way: str) -> dict[str, list[float]]:
        prompts = self.prompts[self.chosen[way]["batch"]]
        answers = self._answers(prompts, self._cache(way), self.workload.new_tokens)
        return {"tokens": [token for _, answer in sorted(answers.items()) for token in answer]}

    # The round.

    def _round(self, way: str) -> dict[str, list[float]]:
        """Base scores, full scores, picks, training, answers on the test prompts."""
        pool, chosen = self.pool[way], self.chosen[way]
        with self.model.peft.disable_adapter():
            base = self._scores(pool, len(self.pool_rows))[1]
        with self.model.dropout(SCORED):
            full = self._scores(pool, len(self.pool_rows), self.workload.samples)[1]
        ranks = [scores.argsort().argsort().float() for scores in (base, full)]
        picked = (0.5 * ranks[0] + 0.5 * ranks[1]).topk(self.workload.picks).indices.tolist()
        self._fit([self.pool_rows[i] for i in picked], way, chosen["train"])
        with self.model.adapter(TRAINED, chosen["generate"].startswith("merged")):
            self._answers(self.test, self._cache(way), self.workload.new_tokens)
        self.model.peft.set_adapter(SCORED)
        return {"picked": picked}
