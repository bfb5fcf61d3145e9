"""The peer's model: a Llama of Transformers with two adapters of PEFT, and how those are switched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from workload import LORA_SPREAD, SEED, Workload

SCORED, TRAINED = "default", "trained"
"""Names of the adapter that scores, and of the one that is trained from scratch."""


class PeerModel:
    """The model in one dtype, with sdpa attention and in evaluation mode.

    Attributes:
      dtype: of the weights, and of the adapter that scores.
      device: where they are.
      peft: the model with its adapters, as PEFT wraps it.
      causal: the model of Transformers inside, whose projections have become layers with LoRA.
    """

    def __init__(self, workload: Workload, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.device = torch.device("cuda" if workload.device == "gpu" else "cpu")
        self.peft = self._load(workload)
        self.causal: Any = self.peft.base_model.model
        self.causal.generation_config.eos_token_id = None  # every answer has its full length

    def _load(self, workload: Workload) -> PeftModel:
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

    @contextmanager
    def adapter(self, name: str, merged: bool) -> Iterator[None]:
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
    def dropout(self, name: str) -> Iterator[None]:
        """Dropout of an adapter on, everything else in evaluation mode."""
        layers = [module.lora_dropout[name] for module in self._lora_layers()]
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()

    def fresh_adapter(self, dtype: torch.dtype) -> dict[str, list[nn.Parameter]]:
        """Switches to the adapter that is trained, drawn anew in a dtype; its parameters by factor, A and B."""
        self.peft.set_adapter(TRAINED)
        for layer in self._lora_layers():
            for factor in (layer.lora_A, layer.lora_B):
                factor[TRAINED].to(dtype)
            layer.reset_lora_parameters(TRAINED, True)
        return {
            factor: [p for name, p in self.peft.named_parameters() if p.requires_grad and factor in name]
            for factor in ("lora_A", "lora_B")
        }

    def wait(self) -> None:
        """Until the device has done all it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _lora_layers(self) -> list[LoraLayer]:
        return [module for module in self.causal.modules() if isinstance(module, LoraLayer)]
