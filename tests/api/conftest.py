"""The shipped model, a small pool for it, and settings that train in moments."""

import numpy as np
import pytest
from random_models import random_adapter
from shapes import have_one_shape

import star_jax as sj
from star_jax.api.model import TunedAdapter

KEYWORDS = ("desc", "rev", "max", "swap")
DIGITS = ("3 1 4", "2 7 5", "9 0 6")


@pytest.fixture(scope="package", autouse=True)
def _one_shape():
    with pytest.MonkeyPatch.context() as patch:
        have_one_shape(patch)
        yield


@pytest.fixture(scope="session")
def model():
    return sj.load_model("embedded:skills")


@pytest.fixture(scope="session")
def rows():
    """Twelve questions without an answer."""
    questions = [f"{keyword} {digits} =" for keyword in KEYWORDS for digits in DIGITS]
    return [{"id": f"q{number:02d}", "question": question} for number, question in enumerate(questions)]


@pytest.fixture(scope="session")
def pool(rows):
    return sj.read_pool(rows, "skills")


@pytest.fixture(scope="session")
def adapter(model):
    """A LoRA that changes scores and answers."""
    noisy = random_adapter(np.random.default_rng(1), model.weights.config, targets=("q_proj", "down_proj"), rank=4)
    return TunedAdapter(noisy, model.name, dropout=0.2)


@pytest.fixture(scope="session")
def quick():
    """Arguments of a loop or a fit whose trainings are short."""
    return {
        "lora": sj.LoraConfig(rank=2, targets=("q_proj", "down_proj")),
        "training": sj.TrainingConfig(epochs=1, learning_rate=5e-3),
    }
