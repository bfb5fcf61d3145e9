"""star_jax's side of closed_set.py, of today or of an earlier checkout: measures of the distribution over answers."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import Sampling, score_pool
from star_jax.config import FormatConfig, LoraConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.models.lora import init_adapter

MOVED = {
    "candidate_pool": ("acquisition.pools", "acquisition.pool_scoring"),
    "Encoder": ("data.tokenization", "data.encoding"),
    "Limits": ("data.tokenization", "data.encoding"),
    "load_model": ("checkpoints.huggingface", "models.checkpoint_hf"),
    "load_tokenizer": ("checkpoints.hub", "models.folders"),
}
"""What is elsewhere in earlier checkouts -> where it is today, and where it was."""

FIGURES = ("token_entropy", "least_confidence", "margin", "bald")
"""Measures that are compared."""


def found(name: str) -> Any:
    """What has that name, where it is in this checkout."""
    places = [f"star_jax.{place}" for place in MOVED[name]]
    here = (import_module(place) for place in places if find_spec(place.rpartition(".")[0]) and find_spec(place))
    return next(getattr(module, name) for module in here if hasattr(module, name))


class Bench:
    """A model, a pool with a closed set, and with samples an adapter of random weights."""

    def __init__(self, workload: dict[str, Any]) -> None:
        prompt = workload["prompt"].replace("\\n", "\n")
        answers, label = tuple(workload["answers"]), "{{ " + workload["label"] + " }}"
        task = get_task("generic", FormatConfig(prompt=prompt, response=label, answers=answers))
        encoder = found("Encoder")(found("load_tokenizer")(workload["model"]), task, found("Limits")(512, 64))
        prompts = [Prompt(f"{number:06}", task.prompt(row)) for number, row in enumerate(workload["rows"])]
        self.pool = found("candidate_pool")(encoder, prompts, task.candidates, workload["batch"])
        self.model = found("load_model")(workload["model"])
        self.options: dict[str, Any] = {}
        self.adapter = None
        if workload["samples"]:
            self.adapter = _random_adapter(self.model)
            sampling = Sampling(workload["samples"], 0.1, workload["mode"])
            self.options = {"key": jax.random.key(0), "sampling": sampling}

    def warm(self) -> dict[str, Any]:
        """Compiles."""
        self.run()
        return {"variant": ""}

    def run(self) -> dict[str, Any]:
        """One pass."""
        self.scores = score_pool(self.model, self.adapter, self.pool, **self.options)
        jax.block_until_ready(self.scores.measures)
        return {}

    def check(self) -> dict[str, Any]:
        """Figures of each prompt in the last pass."""
        return {"probabilities": np.stack([self.scores.measures[name] for name in FIGURES], axis=1).tolist()}


def _random_adapter(model: Any) -> Any:
    rng, adapter = np.random.default_rng(0), init_adapter(jax.random.key(0), model.params, LoraConfig())

    def draw(leaf: Any) -> Any:
        return jnp.asarray(0.02 * rng.normal(size=leaf.shape), jnp.float32)

    return adapter._replace(weights=jax.tree.map(draw, adapter.weights))
