"""A model with its tokenizer, and adapters that know which model they are for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from star_jax.api.checks import check_choice, check_replaceable
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.hub import ModelFolder, open_folder
from star_jax.checkpoints.huggingface import load_weights
from star_jax.checkpoints.peft import CONFIG_FILE, WEIGHTS_FILE, save_adapter
from star_jax.checkpoints.peft import load_adapter as read_adapter
from star_jax.config import MeshConfig
from star_jax.environment import memory_bytes
from star_jax.errors import ConfigError
from star_jax.experiment.mesh_choice import set_mesh
from star_jax.experiment.sizes import Demand, refuse_what_does_not_fit, weight_bytes
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import parameter_sharding, parts_of_a_model
from star_jax.runs.files import replace_folder_atomic


@dataclass(frozen=True)
class Model:
    """A frozen base model with its tokenizer.

    Attributes:
      weights: decoder and parameters, for the functional core.
      folder: that it is from.
    """

    weights: LanguageModel = field(repr=False)
    folder: ModelFolder

    @property
    def name(self) -> str:
        """What it was loaded by."""
        return self.folder.name

    @property
    def tokenizer(self) -> Any:
        """Of transformers."""
        return self.folder.tokenizer


Dtype = Literal["float32", "bfloat16"]
Quantization = Literal["none", "int8", "nf4"]


def load_model(
    path: str | Path,
    *,
    dtype: Dtype = "float32",
    quantization: Quantization = "none",
    max_tokens: int | None = None,
    ignored_fields: Collection[str] = (),
) -> Model:
    """Loads an open-weights model onto the devices: onto each, or divided among as few as it fits on.

    Args:
      path: Hugging Face folder or hub name, or `embedded:skills` for the small model that ships with the package.
      dtype: of the frozen weights and of products.
      quantization: of the frozen projections.
      max_tokens: of a prompt with its response; matters for models with LongRoPE alone, which have two sets of factors.
      ignored_fields: fields of config.json that are not known here and known to you to be harmless.

    Raises:
      ConfigError: the folder cannot be used, or the weights would not fit into memory; what is wrong is named.

    Example:
      >>> import star_jax as sj
      >>> sj.load_model("embedded:skills").name
      'embedded:skills'
    """
    check_choice("dtype", dtype, get_args(Dtype))
    check_choice("quantization", quantization, get_args(Quantization))
    folder = open_folder(str(path))
    config = read_config(folder.path, dtype, max_tokens, ignored_fields)
    set_mesh(MeshConfig(), config, quantization=quantization)
    held = weight_bytes(config, quantization, parts_of_a_model())
    refuse_what_does_not_fit([Demand("path", path, "its weights", held)], memory_bytes())
    weights = load_weights(folder.path, config, quantization=quantization, placement=parameter_sharding)
    return Model(weights, folder)


@dataclass(frozen=True)
class TunedAdapter:
    """A LoRA adapter, and what its folder has to say besides the weights.

    Attributes:
      weights: factors and scales, for the functional core.
      base_model: name of the model that it is for.
      dropout: that it was trained with.
      rslora: whether its scale is alpha / √r.
      root: path of the decoder among the modules of its model.
    """

    weights: Adapter = field(repr=False)
    base_model: str
    dropout: float = 0.0
    rslora: bool = False
    root: str = "model"

    def save(self, folder: str | Path) -> Path:
        """Writes a PEFT folder, which PEFT, Transformers and vLLM read; an adapter that is there already is replaced.

        Raises:
          ConfigError: something else is there, or in the folder.
        """
        path = Path(folder).expanduser()
        check_replaceable(folder, path, (CONFIG_FILE, WEIGHTS_FILE))
        replace_folder_atomic(path, self._write)
        return path

    def _write(self, folder: Path) -> None:
        base, rate = self.base_model, self.dropout
        save_adapter(self.weights, folder, base_model=base, dropout=rate, rslora=self.rslora, root=self.root)


def load_adapter(folder: str | Path, model: Model) -> TunedAdapter:
    """Reads a LoRA adapter from a PEFT folder.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      model: that it is for.

    Raises:
      ConfigError: the folder cannot be read, or its adapter does not fit the model.

    Example:
      >>> import star_jax as sj
      >>> from tempfile import mkdtemp
      >>> model = sj.load_model("embedded:skills")
      >>> rows = [{"question": "rev 3 1 4 =", "answer": "4 1 3"}]
      >>> adapter = sj.fit(model, sj.read_pool(rows, "skills"), training=sj.TrainingConfig(epochs=1))
      >>> path = adapter.save(mkdtemp())
      >>> sj.load_adapter(path, model).base_model
      'embedded:skills'
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{folder} is no folder; name one that holds adapter_config.json")
    weights, raw = read_adapter(path, model.weights.config)
    dropout, rslora = float(raw.get("lora_dropout", 0.0)), bool(raw.get("use_rslora"))
    return TunedAdapter(weights, model.name, dropout, rslora, model.weights.config.module_root)
