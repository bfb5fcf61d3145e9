"""Adapters in both directions: those of PEFT are read here, those made here are read by PEFT, with the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import pytest
from peft_adapters import ADAPTER_ROW, B_SPREAD, FILTER, KINDS, first_projection, peft_adapter, tiny_base
from tiny_models import torch_logits

from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import load_adapter, save_adapter
from star_jax.config import LoraConfig
from star_jax.models.lora import Adapter, init_adapter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings(FILTER)]

TOLERANCE = 1e-4
PLAINLY = 0.1
"""An adapter moves some logit by so much, a thousand times the tolerance."""

Forward = Callable[..., jax.Array]
Rows = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def _optimised_programs() -> None:
    """Not here: each kind is a program of its own, and what is asked is which factor meets which weight."""


@pytest.fixture(params=["Llama-3", "Phi-3"])
def base(request: pytest.FixtureRequest, seed: int, tmp_path: Path) -> PreTrainedModel:
    return tiny_base(request.param, seed, tmp_path / "model")


@pytest.fixture
def rows(rng: np.random.Generator, base: PreTrainedModel) -> Rows:
    """Right-padded random tokens and their lengths."""
    lengths = np.asarray([17, 1, *rng.integers(2, 17, 2)], np.int32)
    tokens = rng.integers(1, base.config.vocab_size, (4, 17)).astype(np.int32)
    return np.where(np.arange(17) < lengths[:, None], tokens, 0), lengths


@pytest.fixture
def plain(base: PreTrainedModel, rows: Rows) -> torch.Tensor:
    """Logits of the base model, before an adapter is put into it."""
    return torch_logits(base, *rows)


Same = Callable[[str, "jax.Array | np.ndarray", "torch.Tensor"], None]


@pytest.fixture
def assert_same(
    base: PreTrainedModel, plain: torch.Tensor, rows: Rows, record_property: Callable[[str, object], None]
) -> Same:
    """Asserts that two sets of logits are one, and not the base model's; takes the way the adapter went."""
    real = np.arange(rows[0].shape[1]) < rows[1][:, None]
    family = base.config.model_type

    def check(way: str, got: jax.Array | np.ndarray, want: torch.Tensor) -> None:
        expected = want.numpy()[real]
        error = float(np.abs(np.asarray(got)[real] - expected).max())
        record_property(ADAPTER_ROW, (way, family, error))
        assert np.abs(expected - plain.numpy()[real]).max() > PLAINLY
        assert error <= TOLERANCE

    return check


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_peft_are_read(
    base: PreTrainedModel, assert_same: Same, rows: Rows, forward: Forward, tmp_path: Path, kind: str
) -> None:
    adapted = peft_adapter(base, kind)
    adapted.save_pretrained(tmp_path / "adapter")
    model = load_model(str(tmp_path / "model"))
    adapter, _ = load_adapter(tmp_path / "adapter", model.config)
    assert_same("of PEFT, read here", forward(model, adapter, *rows), torch_logits(adapted, *rows))


def with_random_b(adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """Random B where there is an adapter, smaller where A is larger; layers without one stay as they are."""
    weights = {}
    for name, factors in adapter.weights["layers"].items():
        a, chosen = np.asarray(factors["a"]), np.asarray(adapter.scale["layers"][name]["scale"]) != 0
        spread = B_SPREAD / (a[chosen].std() * np.sqrt(3 * a.shape[1]))
        b = chosen[:, None, None] * rng.normal(0, spread, factors["b"].shape)
        weights[name] = {"a": a, "b": b.astype(np.float32)}
    return adapter._replace(weights={"layers": weights})


@pytest.mark.parametrize("kind", ["plain", "rslora", "gaussian", "some-layers"])
def test_adapters_made_here_are_read_by_peft(
    base: PreTrainedModel,
    assert_same: Same,
    rows: Rows,
    forward: Forward,
    rng: np.random.Generator,
    seed: int,
    tmp_path: Path,
    kind: str,
) -> None:
    from peft import PeftModel

    some = (first_projection(base), r".*[.]layers[.]1[.]mlp[.].*", "layers.2.self_attn.o_proj")
    config = {
        "plain": LoraConfig(rank=3, alpha=7.0),
        "rslora": LoraConfig(rank=3, alpha=7.0, rslora=True),
        "gaussian": LoraConfig(rank=3, alpha=7.0, init="gaussian"),
        "some-layers": LoraConfig(rank=3, alpha=7.0, targets=some),
    }[kind]
    model = load_model(str(tmp_path / "model"))
    adapter = with_random_b(init_adapter(jax.random.key(seed), model.params, config), rng)
    save_adapter(adapter, tmp_path / "ours", base_model="somewhere", dropout=0.1, rslora=config.rslora)
    adapted = PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert_same("made here, read by PEFT", forward(model, adapter, *rows), torch_logits(adapted, *rows))


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_that_pass_through_are_still_read_by_peft(
    base: PreTrainedModel,
    assert_same: Same,
    rows: Rows,
    tmp_path: Path,
    kind: str,
) -> None:
    """Loaded here and saved again, as a training does that starts from an adapter."""
    from peft import PeftModel

    adapted = peft_adapter(base, kind)
    adapted.save_pretrained(tmp_path / "theirs")
    want = torch_logits(adapted, *rows)
    adapter, raw = load_adapter(tmp_path / "theirs", read_config(tmp_path / "model", "float32"))
    rslora = bool(raw["use_rslora"])
    save_adapter(adapter, tmp_path / "ours", base_model="somewhere", dropout=0.1, rslora=rslora)
    again = PeftModel.from_pretrained(adapted.unload(), tmp_path / "ours").eval()
    assert_same("of PEFT, read and written here", torch_logits(again, *rows).numpy(), want)
