"""A real model with rows of text as a folder that both sides read: what random_folders.py is for random ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from random_folders import write_adapter
from workload import ROWS_FILE, SEED, BenchError, Shape, Workload

from star_jax.checkpoints.hub import open_folder
from star_jax.config import FormatConfig
from star_jax.data.loading import load_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ConfigError, DataError


class Rows(NamedTuple):
    """Rows of text: a file with a row a line, how a row becomes prompt and response, and limits in tokens."""

    path: str
    prompt: str
    response: str
    prompt_limit: int
    response_limit: int


SHORT_ROWS = Rows("experiments/shop_messages/pool.csv", "Message: {{ text }}\nTopic: ", "{{ topic }}", 64, 6)
"""Messages to a shop and their topics, which ship with the repository."""


def write_real_folder(workload: Workload, model: str, rows: Rows, folder: Path) -> Workload:
    """Writes `folder/adapter` and the rows, links `folder/model`, and says so in the workload.

    The adapter changes nothing, so that answers are those of the model, of whatever length they are.

    Raises:
      BenchError: the model is no Llama, or the rows cannot be read or are too few.
    """
    try:
        opened = open_folder(model)
        config = json.loads((opened.path / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "llama":
            raise BenchError(f"--model: {model} is a {config.get('model_type')}; the benchmark takes a Llama")
        task = get_task("generic", FormatConfig(prompt=rows.prompt, response=rows.response), opened.tokenizer)
        limits = Limits(rows.prompt_limit, rows.response_limit, "truncate-left")
        encoder = Encoder(opened.tokenizer, task, limits, vocab_size=config["vocab_size"], end_ids=opened.end_ids)
        encoded = encoder.examples(load_examples(task, rows.path, "train", "error"))
    except (ConfigError, DataError) as error:
        raise BenchError(str(error)) from error
    wanted = max(workload.examples, workload.prompts, workload.pool + workload.test)
    if len(encoded) < wanted:
        raise BenchError(
            f"--rows: {rows.path} has {len(encoded)} rows, and {wanted} are needed; lower --examples, "
            "--prompts, --pool or --test"
        )
    chosen = [encoded[place] for place in np.random.default_rng(SEED).permutation(len(encoded))]
    (folder / "model").symlink_to(opened.path.resolve(), target_is_directory=True)
    written = [[row.tokens.tolist(), row.prompt_length] for row in chosen]
    (folder / ROWS_FILE).write_text(json.dumps(written), encoding="utf-8")
    real = replace(workload, shape=Shape.of(config), folder=str(folder), real=Path(model).name, ends=encoder.end_ids)
    write_adapter(np.random.default_rng(SEED), real, folder / "adapter", 0.0)
    return real
