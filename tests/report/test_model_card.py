"""Model cards: what the hub reads of them, the figures in them, and nothing of the machine they were made on."""

import random
import re

import pytest
from huggingface_hub import ModelCard

from star_jax import __version__
from star_jax.acquisition.strategy import get_strategy
from star_jax.config import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LoopConfig,
    LoraConfig,
    ModelConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.errors import ConfigError
from star_jax.registry import STRATEGIES
from star_jax.report.model_card import ANSWERS, CONFIDENCE, RESULTS, model_card

FACTS = {"pool_examples": 1234, "test_examples": 567, "pool": "a fingerprint"}


@pytest.fixture
def metrics(seed):
    draw = random.Random(seed)
    row = {name: draw.random() for name in RESULTS}
    return row | {"round": draw.randrange(9), "labelled": draw.randrange(80, 900), "train_loss": 0.25}


def made(metrics, strategy="star", seed=3, **sections):
    text = model_card(ExperimentConfig(**sections), strategy, seed, metrics, FACTS)
    return ModelCard(text).data, ModelCard(text).text


def test_the_hub_reads_what_the_adapter_is_for(metrics):
    model = ModelConfig("someone/Their-Model_7B", "bfloat16", "nf4")
    data = DataConfig(task="gsm8k", train="openai/gsm8k:main", test="openai/gsm8k:main@test")
    front, text = made(metrics, "bald", 7, model=model, data=data)
    assert front.base_model == "someone/Their-Model_7B"
    assert front.library_name == "peft"
    assert front.tags == ["lora", "active-learning", "star_jax"]
    assert front.datasets == ["openai/gsm8k"]
    assert front.model_name == "gsm8k-bald-seed-7"
    assert {result.metric_type: result.metric_value for result in front.eval_results} == {
        name: metrics[name] for name in ("accuracy", "ece")
    }
    assert {result.dataset_name for result in front.eval_results} == {"openai/gsm8k"}
    assert "`someone/Their-Model_7B`, weights in bfloat16, projections quantised to nf4" in text
    assert 'folder = "someone/Their-Model_7B"' in text
    assert "--model someone/Their-Model_7B --out" in text
    assert "`openai/gsm8k:main`, 1234 examples" in text
    assert "`openai/gsm8k:main@test`, 567 examples" in text


def test_figures_are_those_given(metrics):
    text = made(metrics)[1]
    table = dict(re.findall(r"^\| (.*) \| (\d\.\d{4}) \|$", text, flags=re.M))
    assert table == {title: f"{metrics[name]:.4f}" for name, title in RESULTS.items()}
    assert f"labels bought: {metrics['labelled']}\n" in text
    assert f"round {metrics['round'] + 1} of 10\n" in text
    assert f"Made with star_jax {__version__}." in text
    assert "| AUROC of uncertainty against errors | \N{EN DASH} |" in made(metrics | {"auroc": None})[1]


def test_how_it_was_trained(metrics):
    lora = LoraConfig(rank=12, alpha=24.0, dropout=0.25, rslora=True, targets=("q_proj", r".*[.](0|1)[.]mlp[.].*"))
    training = TrainingConfig(learning_rate=3e-4, epochs=5, batch_size=6, decay_b=0.0, l2_b=0.125)
    text = made(
        metrics | {"labelled": 60},
        "entropy",
        lora=lora,
        training=training,
        loop=LoopConfig(initial_labels=50, rounds=20),
        scoring=ScoringConfig(answers="reference"),
        evaluation=EvaluationConfig(confidence="mean_token", bins=11),
    )[1]
    for words in (
        "60 labels: 50 drawn at random from a pool of 1234 examples, 10 picked by `entropy`",
        f"strategy `entropy`: {get_strategy('entropy').description}",
        "scores: gold answers (an oracle)",
        f"seed 3, round {metrics['round'] + 1} of 20",
        "r 12, alpha 24, scale alpha / √r (rsLoRA), on `q_proj`, `.*[.](0|1)[.]mlp[.].*`",
        "dropout 0.25",
        "learning rate 0.0003 (linear), 5 epochs, batches of 6",
        "held back by: 0.125 · ‖B‖² in the loss\n",
        "geometric mean of the probabilities of an answer's tokens; ECE has 11 bins",
    ):
        assert words in text
    assert "held back by: nothing" in made(metrics, training=TrainingConfig(decay_b=0.0))[1]


def test_the_embedded_model_and_benchmark_have_no_names_on_the_hub(metrics):
    front, text = made(metrics, "random", data=DataConfig(regime="R3"))
    assert front.base_model is None
    assert "base_model" not in front.to_dict()
    assert front.get("datasets") is None
    assert {result.dataset_name for result in front.eval_results} == {"skills"}
    assert "`embedded:skills`, a model that ships with star_jax," in text
    assert 'folder = resolve_folder("embedded:skills")' in text
    assert "made by the skills generator, regime R3, 1234 examples" in text
    assert "test set: that of the skills generator, 567 examples" in text
    assert "what it scores" not in text


def test_no_path_of_the_machine_is_told(metrics, tmp_path, monkeypatch):
    """Absolute, relative, and one that looks like a hub name but is a folder."""
    for name in ("deep/My-Model", "owner/Other-Model", "runs/adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "deep" / "pool.csv").touch()
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "deep" / "My-Model", "./deep/My-Model", "~/deep/My-Model", "owner/Other-Model"):
        name = str(path).split("/")[-1]
        front, text = made(
            metrics,
            model=ModelConfig(str(path), adapter=str(tmp_path / "runs" / "adapter")),
            data=DataConfig(task="boolq", train="deep/pool.csv", test=str(tmp_path / "test.jsonl")),
        )
        assert "base_model" not in front.to_dict()
        assert "datasets" not in front.to_dict()
        assert f"- `{name}`, weights in float32\n" in text
        assert f'folder = "PATH/TO/{name}"' in text
        assert "starts from the adapter `adapter`, whose rank" in text
        assert "alpha 16" not in text
        assert "pool: `pool.csv`" in text
        assert "test set: `test.jsonl`" in text
        for private in (str(tmp_path), "deep/", "owner/", "~"):
            assert private not in front.to_yaml() + text


@pytest.mark.parametrize("strategy", STRATEGIES.names())
def test_every_strategy_has_a_card(metrics, strategy):
    text = made(metrics, strategy)[1]
    assert get_strategy(strategy).description in text
    assert not re.search(r"\n{3}|[ \t]\n|None|\{\{|\{%", text)
    assert text.endswith(".\n")


@pytest.mark.parametrize("missing", ["labelled", "round", *RESULTS])
def test_a_figure_that_is_missing_is_an_error(metrics, missing):
    rest = {name: value for name, value in metrics.items() if name != missing}
    with pytest.raises(Exception, match=missing):
        made(rest)


def test_a_strategy_that_does_not_exist_is_an_error(metrics):
    with pytest.raises(ConfigError, match="stars"):
        made(metrics, "stars")


def test_every_choice_of_the_configuration_has_its_words(metrics):
    for answers in ("generated", "candidates", "reference"):
        for confidence in ("sequence", "mean_token"):
            _, text = made(metrics, scoring=ScoringConfig(answers), evaluation=EvaluationConfig(confidence=confidence))
            assert ANSWERS[answers] in text
            assert CONFIDENCE[confidence] in text
