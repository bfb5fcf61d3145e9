"""Merged exports in Transformers against base and adapter in PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from peft_adapters import ADAPTER_ROW, FILTER, peft_adapter, tiny_base
from safetensors.numpy import load_file
from tiny_models import torch_logits

from star_jax.cli import export

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings(FILTER)]

TOLERANCE = 1e-4
PLAINLY = 0.1
"""An adapter moves some logit by so much, a thousand times the tolerance."""


def loaded(folder: Path, **options: Any) -> PreTrainedModel:
    """The model that Transformers reads from a folder, with every tensor in its place and none left over."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return model.eval().requires_grad_(False)


def exported(folder: Path, *flags: str) -> Path:
    where = {"--adapter": "adapter", "--model": "model", "--out": "merged"}
    paths = [text for flag, name in where.items() for text in (flag, str(folder / name))]
    assert export.main([*paths, *flags]) == 0
    return folder / "merged"


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "regex"])
@pytest.mark.parametrize("family", ["Llama-3", "Llama-3.2", "Phi-3", "Gemma-2"])
def test_merged_is_base_and_adapter(
    rng: np.random.Generator,
    seed: int,
    tmp_path: Path,
    family: str,
    kind: str,
    record_property: Callable[[str, object], None],
) -> None:
    base = tiny_base(family, seed, tmp_path / "model")
    lengths = np.asarray([15, 1, 8], np.int32)
    tokens = rng.integers(1, base.config.vocab_size, (3, 15)).astype(np.int32)
    real = np.arange(15) < lengths[:, None]
    plain = torch_logits(base, tokens, lengths)[real]
    adapted = peft_adapter(base, kind)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = torch_logits(adapted, tokens, lengths)[real]
    assert (expected - plain).abs().max() > PLAINLY
    got = torch_logits(loaded(exported(tmp_path)), tokens, lengths)[real]
    error = (got - expected).abs().max().item()
    record_property(ADAPTER_ROW, ("merged here, read by Transformers", family, error))
    assert error <= TOLERANCE


@pytest.mark.parametrize("family", ["Llama-3.2", "Phi-3"])
def test_shards_of_bfloat16_stay_so(seed: int, tmp_path: Path, family: str) -> None:
    import torch

    base = tiny_base(family, seed, tmp_path / "wide").to(torch.bfloat16)
    base.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    stored = {name: parameter.clone() for name, parameter in base.named_parameters()}
    adapted = peft_adapter(base.float(), "rslora")
    adapted.save_pretrained(tmp_path / "adapter")
    want = dict(adapted.merge_and_unload().named_parameters())

    merged = exported(tmp_path, "--max-shard-size", "0.0001")
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    files = sorted(merged.glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert len(files) > 1
    assert {tensor.dtype.name for file in files for tensor in load_file(file).values()} == {"bfloat16"}
    got = dict(loaded(merged, dtype="auto").named_parameters())
    assert set(got) == set(stored)
    for name, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        # Half a unit in the last of bfloat16's eight bits, and what float32 sums in another order differ by.
        torch.testing.assert_close(tensor.float(), want[name].float(), rtol=2**-8, atol=1e-5)
        changed = not torch.equal(tensor, stored[name])
        assert changed == name.endswith("_proj.weight"), name
