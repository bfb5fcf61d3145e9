"""The peer's side: Transformers and PEFT on torch, as somebody would write it who knows them well.

Sequences are sorted by length, batched, and run under `inference_mode` with sdpa attention. Right-padded rows need no
mask under causal attention, so that sdpa takes its causal kernel. The output projection sees only the positions that
predict a response. Where there are several good ways (LoRA merged or not, kind of cache, dtype of the LoRA that is
trained), all are tried before anything is timed, and the fastest is taken.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, get_linear_schedule_with_warmup
from workload import LORA_SPREAD, SEED, Outcome, Sequence, Workload, prompts_of

PACKAGES = ("torch", "transformers", "peft")

SCORED, TRAINED = "default", "trained"
"""Names of the adapter that scores, and of the one that is trained from scratch."""

PROBE_TOKENS = 32
"""New tokens of the runs that choose between ways of generating."""

torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def accelerator() -> str | None:
    """Name of the GPU that torch computes on, or None."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


class Batch(NamedTuple):
    """Right-padded rows.

    Attributes:
      tokens: `B×T`.
      places: `M` positions in the flattened rows that predict the M response tokens.
      targets: `M` those tokens.
      owners: `M` the row each belongs to.
      numbers: `B` the rows' places in their data set.
    """

    tokens: Tensor
    places: Tensor
    targets: Tensor
    owners: Tensor
    numbers: Tensor


class Bench:
    """The tasks in one dtype, with their model and batches."""

    def __init__(self, workload: Workload, dtype: str) -> None:
        self.workload, self.dtype = workload, getattr(torch, dtype)
        self.device = torch.device("cuda" if workload.device == "gpu" else "cpu")
        self.peft = self._model()
        self.causal: Any = self.peft.base_model.model
        self.causal.generation_config.eos_token_id = None  # every answer has its full length
        sequences = workload.sequences()
        self.rows, self.pool_rows = sequences[: workload.examples], workload.pool_sequences()
        self.batches = self._score_batches(self.rows)
        self.pool = self._score_batches(self.pool_rows)
        self.prompts = self._prompt_batches(prompts_of(sequences[: workload.prompts]))
        self.test = self._prompt_batches(workload.test_prompts())
        self.chosen: dict[str, str] = {}

    def choose(self, task: str) -> dict[str, float]:
        """Tries every way of doing a task, twice each, and keeps the fastest; seconds of the second time."""
        tried: dict[str, float] = {}
        kinds = {"score-k1": ("score",), "train": ("train",), "generate": ("generate",), "round": ("train", "generate")}
        for kind in kinds.get(task, ()):
            if kind not in self.chosen:
                seconds = {name: self._probe(way) for name, way in self._ways(kind).items()}
                self.chosen[kind] = min(seconds, key=seconds.__getitem__)
                tried |= seconds
        return tried

    def run(self, task: str) -> Outcome:
        """One timed run of a task; merging is not part of the time, except in a round, where the adapter is new."""
        torch.manual_seed(SEED)
        tasks: dict[str, tuple[str | None, Callable[[], dict[str, list[float]]]]] = {
            "score-k1": ("score", lambda: self._measures(self.batches, len(self.rows))),
            "score-k3": (None, self._score_samples),
            "train": ("train", lambda: {"loss": [self._fit(self.rows, self.chosen["train"])]}),
            "generate": ("generate", self._generate),
            "round": ("generate", self._round),
        }
        kind, function = tasks[task]
        variant = self.chosen[kind] if kind else ""
        merged = variant.startswith("merged")
        with self._adapter(SCORED, merged and task != "round"):
            self._wait()
            began = time.perf_counter()
            check = function()
            self._wait()
            seconds = time.perf_counter() - began
        return Outcome(seconds, merged, f"{self.chosen['train']}; {variant}" if task == "round" else variant, check)

    def multiply(self, times: int) -> None:
        """Takes the product of two square matrices so many times."""
        for _ in range(times):
            torch.matmul(*self._factors)
        self._wait()

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        left, right = torch.randn(
            2, self.workload.peak_size, self.workload.peak_size, dtype=self.dtype, device=self.device
        )
        return left, right

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    # The model, its adapters, and the ways there are.

    def _model(self) -> PeftModel:
        workload = self.workload
        lora = LoraConfig(
            r=workload.rank,
            lora_alpha=workload.alpha,
            lora_dropout=workload.dropout,
            target_modules=[name.split(".")[1] for name in workload.shape.projections],
            task_type="CAUSAL_LM",
        )
        options = {"dtype": self.dtype, "attn_implementation": "sdpa"}
        if workload.folder is None:
            fields = {key: value for key, value in workload.shape.config().items() if key != "architectures"}
            torch.manual_seed(SEED)
            with self.device:
                base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), **options)
                model = get_peft_model(base, lora, SCORED, autocast_adapter_dtype=False)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=LORA_SPREAD)
        else:
            folder = Path(workload.folder)
            base = AutoModelForCausalLM.from_pretrained(folder / "model", **options).to(self.device)
            model = PeftModel.from_pretrained(base, folder / "adapter", SCORED, autocast_adapter_dtype=False)
        model.add_adapter(TRAINED, lora)
        model.set_adapter(SCORED)
        return model.to(self.device).eval()

    def _ways(self, kind: str) -> dict[str, Callable[[], object]]:
        """Name -> a short run of each way of doing a kind of task."""
        merging = {"merged": True, "not merged": False}
        if kind == "score":
            return {name: partial(self._probe_scoring, merged) for name, merged in merging.items()}
        if kind == "generate":
            return {
                f"{name}, {cache} cache": partial(self._probe_generating, merged, cache)
                for name, merged in merging.items()
                for cache in ("dynamic", "static")
            }
        names = ["float32 LoRA"]
        if self.dtype != torch.float32:
            names = ["float32 LoRA with autocast", "LoRA in the model's dtype"]
        few = self.rows[: 2 * self.workload.train_batch]
        return {name: partial(self._fit, few, name) for name in names}

    def _probe(self, way: Callable[[], object]) -> float:
        way()
        self._wait()
        began = time.perf_counter()
        way()
        self._wait()
        return time.perf_counter() - began

    def _probe_scoring(self, merged: bool) -> None:
        with self._adapter(SCORED, merged):
            self._measures(self.batches[-1:], len(self.rows))

    def _probe_generating(self, merged: bool, cache: str) -> None:
        with self._adapter(SCORED, merged):
            self._answers(self.prompts[:1], cache, min(PROBE_TOKENS, self.workload.new_tokens))

    @contextmanager
    def _adapter(self, name: str, merged: bool) -> Iterator[None]:
        """Switches to an adapter, merged into the weights if so wanted."""
        self.peft.set_adapter(name)
        if merged:
            self.peft.merge_adapter()
        try:
            yield
        finally:
            if merged:
                self.peft.unmerge_adapter()

    @contextmanager
    def _dropout(self, name: str) -> Iterator[None]:
        """Dropout of an adapter on, everything else in evaluation mode."""
        layers = [module.lora_dropout[name] for module in self._lora_layers()]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.causal.modules() if isinstance(module, LoraLayer)]

    # Scoring.

    def _score_batches(self, rows: list[Sequence]) -> list[Batch]:
        """Batches of neighbours in length."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        size = self.workload.score_batch
        return [self._batch(rows, order[start : start + size]) for start in range(0, len(rows), size)]

    def _batch(self, rows: list[Sequence], index: list[int]) -> Batch:
        chosen = [rows[i] for i in index]
        width = max(len(row.tokens) for row in chosen)
        tokens = np.zeros((len(chosen), width), np.int64)
        for place, row in enumerate(chosen):
            tokens[place, : len(row.tokens)] = row.tokens
        places = [
            np.arange(row.prompt_length - 1, len(row.tokens) - 1) + place * width for place, row in enumerate(chosen)
        ]
        owners = [np.full(row.response_length, place) for place, row in enumerate(chosen)]
        targets = [row.tokens[row.prompt_length :].astype(np.int64) for row in chosen]
        arrays = (tokens, *(np.concatenate(parts) for parts in (places, targets, owners)), np.asarray(index))
        return Batch(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def _logits(self, batch: Batch) -> Tensor:
        """`M×V` float32, at the positions that predict the responses."""
        hidden = self.causal.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        return self.causal.lm_head(hidden.flatten(0, 1)[batch.places]).float()

    def _statistics(self, batch: Batch) -> Tensor:
        """`2×B`: NLL and entropy of the responses, nats, summed over their tokens."""
        log_probs = torch.log_softmax(self._logits(batch), dim=-1)
        nll = -log_probs.gather(1, batch.targets[:, None])[:, 0]
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        sums = torch.zeros(2, len(batch.tokens), device=self.device)
        return sums.index_add_(1, batch.owners, torch.stack([nll, entropy]))

    @torch.inference_mode()
    def _scores(self, batches: list[Batch], count: int, samples: int = 1) -> Tensor:
        """`2×count`, averaged over passes."""
        scores = torch.zeros(2, count, device=self.device)
        for batch in batches:
            scores[:, batch.numbers] = sum(self._statistics(batch) for _ in range(samples)) / samples
        return scores.cpu()

    def _measures(self, batches: list[Batch], count: int, samples: int = 1) -> dict[str, list[float]]:
        nll, entropy = self._scores(batches, count, samples).tolist()
        return {"nll": nll, "entropy": entropy}

    def _score_samples(self) -> dict[str, list[float]]:
        with self._dropout(SCORED):
            return self._measures(self.batches, len(self.rows), self.workload.samples)

    # Training.

    def _fit(self, rows: list[Sequence], way: str) -> float:
        """One pass of AdamW over a fresh LoRA, in batches of like length; the mean loss, nats a token."""
        workload = self.workload
        self.peft.set_adapter(TRAINED)
        dtype = self.dtype if way == "LoRA in the model's dtype" else torch.float32
        for layer in self._lora_layers():
            for factor in (layer.lora_A, layer.lora_B):
                factor[TRAINED].to(dtype)
            layer.reset_lora_parameters(TRAINED, True)
        groups = [
            {"params": [p for name, p in self.peft.named_parameters() if p.requires_grad and factor in name], **decay}
            for factor, decay in (("lora_A", {"weight_decay": 0.0}), ("lora_B", {"weight_decay": workload.decay_b}))
        ]
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=workload.learning_rate, fused=True)
        steps = math.ceil(len(rows) / workload.train_batch)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
        autocast: AbstractContextManager = nullcontext()
        losses, tokens = torch.zeros((), device=self.device), 0
        with self._dropout(TRAINED):
            for index in self._train_order(rows):
                batch = self._batch(rows, index)
                if way.endswith("autocast"):
                    autocast = torch.autocast(self.device.type, self.dtype)
                with autocast:
                    logits = self._logits(batch)
                loss = nn.functional.cross_entropy(logits, batch.targets)
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, workload.gradient_clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses += loss.detach() * len(batch.targets)
                tokens += len(batch.targets)
        return float(losses) / tokens

    def _train_order(self, rows: list[Sequence]) -> list[list[int]]:
        """Batches of neighbours in length, in random order."""
        order, size = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens)), self.workload.train_batch
        groups = [order[start : start + size] for start in range(0, len(rows), size)]
        return [groups[i] for i in torch.randperm(len(groups)).tolist()]

    # Generation.

    def _prompt_batches(self, prompts: list[np.ndarray]) -> list[tuple[Tensor, Tensor, list[int]]]:
        """Left-padded prompts `B×P`, their masks, and their places; neighbours in length together."""
        order, size = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), self.workload.generate_batch
        batches = []
        for start in range(0, len(prompts), size):
            index = order[start : start + size]
            width = max(len(prompts[i]) for i in index)
            tokens, mask = np.zeros((2, len(index), width), np.int64)
            for place, i in enumerate(index):
                tokens[place, width - len(prompts[i]) :] = prompts[i]
                mask[place, width - len(prompts[i]) :] = 1
            batches.append((*(torch.from_numpy(array).to(self.device) for array in (tokens, mask)), index))
        return batches

    @torch.inference_mode()
    def _answers(self, batches: list[tuple[Tensor, Tensor, list[int]]], cache: str, width: int) -> dict[int, list[int]]:
        """Greedy answers of `width` tokens by the places of their prompts."""
        config = GenerationConfig(
            max_new_tokens=width,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static" if cache == "static" else None,
        )
        answers: dict[int, list[int]] = {}
        for tokens, mask, index in batches:
            written = self.causal.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
            written = written[:, tokens.shape[1] :]
            if written.shape[1] != width:
                raise RuntimeError(f"generate wrote {written.shape[1]} tokens instead of {width}")
            answers |= dict(zip(index, written.tolist(), strict=True))
        return answers

    def _cache(self) -> str:
        return "static" if "static" in self.chosen["generate"] else "dynamic"

    def _generate(self) -> dict[str, list[float]]:
        answers = self._answers(self.prompts, self._cache(), self.workload.new_tokens)
        return {"tokens": [token for _, answer in sorted(answers.items()) for token in answer]}

    # The round.

    def _round(self) -> dict[str, list[float]]:
        """Base scores, full scores, picks, training, answers on the test prompts."""
        with self.peft.disable_adapter():
            base = self._scores(self.pool, len(self.pool_rows))[1]
        with self._dropout(SCORED):
            full = self._scores(self.pool, len(self.pool_rows), self.workload.samples)[1]
        ranks = [scores.argsort().argsort().float() for scores in (base, full)]
        picked = (0.5 * ranks[0] + 0.5 * ranks[1]).topk(self.workload.picks).indices.tolist()
        self._fit([self.pool_rows[i] for i in picked], self.chosen["train"])
        with self._adapter(TRAINED, self.chosen["generate"].startswith("merged")):
            self._answers(self.test, self._cache(), self.workload.new_tokens)
        self.peft.set_adapter(SCORED)
        return {"picked": picked}
