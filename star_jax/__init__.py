"""Data-efficient fine-tuning of language models: which examples to label next, and a LoRA on those that are labelled.

    import star_jax as sj

    model = sj.load_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    pool = sj.read_pool("pool.csv", sj.Format(prompt="{{ text }}\\n", answers=("yes", "no")))
    loop = sj.ActiveLoop(model, pool, strategy="star")
    requests = loop.ask(50)
    loop.tell({request.id: my_label(request.text) for request in requests})
    loop.adapter.save("adapter")

What `__all__` lists is the public interface; everything else may change. Names are loaded when they are first used, and
importing the package configures nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_PLACES = {
    "load_model": "api.model",
    "load_adapter": "api.model",
    "read_pool": "api.pool",
    "Format": "api.pool",
    "TokenLimits": "api.pool",
    "score_pool": "api.scores",
    "select_batch": "api.scores",
    "ActiveLoop": "api.loop",
    "SKIP": "config",
    "fit": "api.training",
    "evaluate": "api.training",
    "predict": "api.training",
    "LoraConfig": "config",
    "TrainingConfig": "config",
    "ScoringConfig": "config",
    "AcquisitionConfig": "config",
    "Measure": "acquisition.needs",
    "Embedding": "acquisition.needs",
    "GradientSketch": "acquisition.needs",
    "register_strategy": "acquisition.strategy",
    "register_task": "data.tasks",
    "register_annotator": "annotators.annotator",
    "register_tracker": "tracking.tracker",
    "Task": "data.tasks.task",
    "Answer": "annotators.annotator",
    "ConfigError": "errors",
    "DataError": "errors",
}
"""Public name -> module of the package that has it."""

__all__ = [
    "SKIP",
    "AcquisitionConfig",
    "ActiveLoop",
    "Answer",
    "ConfigError",
    "DataError",
    "Embedding",
    "Format",
    "GradientSketch",
    "LoraConfig",
    "Measure",
    "ScoringConfig",
    "Task",
    "TokenLimits",
    "TrainingConfig",
    "__version__",
    "evaluate",
    "fit",
    "load_adapter",
    "load_model",
    "predict",
    "read_pool",
    "register_annotator",
    "register_strategy",
    "register_task",
    "register_tracker",
    "score_pool",
    "select_batch",
]

if TYPE_CHECKING:
    from star_jax.acquisition.needs import Embedding, GradientSketch, Measure
    from star_jax.acquisition.strategy import register_strategy
    from star_jax.annotators.annotator import Answer, register_annotator
    from star_jax.api.loop import ActiveLoop
    from star_jax.api.model import load_adapter, load_model
    from star_jax.api.pool import Format, TokenLimits, read_pool
    from star_jax.api.scores import score_pool, select_batch
    from star_jax.api.training import evaluate, fit, predict
    from star_jax.config import SKIP, AcquisitionConfig, LoraConfig, ScoringConfig, TrainingConfig
    from star_jax.data.tasks import register_task
    from star_jax.data.tasks.task import Task
    from star_jax.errors import ConfigError, DataError
    from star_jax.tracking.tracker import register_tracker


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'star_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"star_jax.{place}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
