"""Peak resident memory of loading a checkpoint, as a multiple of its parameters' bytes.

    python experiments/loading_memory.py --folder /path/with/3/GB/free

makes a Llama-shaped checkpoint of 1.1 billion random bfloat16 parameters in four shards (TinyLlama's shape; made
once, then reused), loads it in a process of its own, and prints the peak.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHARDS = 4


def make(folder: Path) -> None:
    """Writes config.json, four shards and their index."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from star_jax.checkpoints.files import INDEX_FILE
    from star_jax.checkpoints.hf_config import read_config
    from star_jax.checkpoints.tensor_shapes import tensor_shapes

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = tensor_shapes(read_config(folder, "bfloat16"))
    names, rng, weight_map = sorted(shapes), np.random.default_rng(0), {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        tensors = {
            name: (rng.standard_normal(shapes[name], np.float32) * 0.02).astype(ml_dtypes.bfloat16)
            for name in names[shard::SHARDS]
        }
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def load(folder: Path, dtype: str, quantization: str) -> None:
    """Loads, and prints the peak of this process before and after."""
    import jax

    from star_jax.checkpoints.huggingface import load_model

    jax.block_until_ready(jax.numpy.zeros(1))
    before = peak()
    params = load_model(str(folder), dtype, quantization=quantization).params
    jax.block_until_ready(params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    after = peak()
    print(
        f"{dtype}, quantization {quantization}: parameters {size / 2**20:.0f} MiB, peak {after / 2**20:.0f} MiB, "
        f"{before / 2**20:.0f} MiB of it before loading; peak / parameters {after / size:.3f}, "
        f"without what was there before {(after - before) / size:.3f}"
    )


def peak() -> int:
    """Largest resident size of this process so far, bytes; Linux. (`getrusage` would count the parent's as well.)"""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is, or is made")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        load(args.folder, *args.child)
        return
    if not (args.folder / "config.json").is_file():
        make(args.folder)
    for dtype, quantization in (("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "nf4")):
        command = [sys.executable, __file__, "--folder", str(args.folder), "--child", dtype, quantization]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
