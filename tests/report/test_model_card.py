"""Model cards: what the hub reads of them, the figures in them, and nothing of the machine they were made on."""

import random
import re
from types import SimpleNamespace

import numpy as np
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
from star_jax.data.examples import Prompt
from star_jax.data.tokenization import Limits
from star_jax.errors import ConfigError
from star_jax.registry import STRATEGIES
from star_jax.report.model_card import ANSWERS, CONFIDENCE, RESULTS, model_card, usage_of

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
    assert f"round {metrics['round']} of 0 to 9\n" in text
    assert f"Made with star_jax {__version__}." in text
    assert "| AUROC of uncertainty against errors | \N{EN DASH} |" in made(metrics | {"auroc": None})[1]


def test_how_it_was_trained(metrics):
    lora = LoraConfig(rank=12, alpha=24.0, dropout=0.25, rslora=True, targets=("q_proj", r".*[.](0|1)[.]mlp[.].*"))
    training = TrainingConfig(
        learning_rate=3e-4, epochs=5, batch_size=6, decay_b=0.0, l2_b=0.125, min_steps=40, average_fraction=0.25
    )
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
        f"seed 3, round {metrics['round']} of 0 to 19",
        "r 12, alpha 24, scale alpha / √r (rsLoRA), on `q_proj`, `.*[.](0|1)[.]mlp[.].*`",
        "dropout 0.25",
        "learning rate 0.0003 (linear), 5 epochs and 40 steps at least, batches of 6",
        "mean of the weights of the last 0.25 of the steps",
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


class Words:
    """A tokenizer of words; it may put tokens before and behind a text, and spells what it adds."""

    def __init__(self, before=(), behind=()):
        self.before, self.behind = list(before), list(behind)

    def __call__(self, text, add_special_tokens=True):
        ids = [10 + len(word) for word in text.split()]
        return {"input_ids": [*self.before, *ids, *self.behind] if add_special_tokens else ids}

    def convert_ids_to_tokens(self, number):
        return f"<{number}>"


def encoder(tokenizer, wanted, limit=64):
    """Of which the card reads the tokens that the model was asked with, the ends of an answer, and the limit."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        end_ids=(2, 107),
        limits=Limits(100, limit),
        prompts=lambda prompts: [np.asarray(wanted(prompt.text)) for prompt in prompts],
    )


def used(raw=None, tokenizer=None, wanted=None, texts=("one two ``` three\n'four'",)):
    tokenizer = tokenizer or Words()
    wanted = wanted or (lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    pool = [Prompt(f"p{number}", text) for number, text in enumerate(texts)]
    return usage_of(encoder(tokenizer, wanted), pool, raw or {"r": 8})


def with_usage(metrics, usage, **sections):
    return model_card(ExperimentConfig(**sections), "star", 3, metrics, FACTS, usage)


def programs(card):
    """The Python programs in a card."""
    return re.findall(r"^```python\n(.*?)^```$", card, flags=re.S | re.M)


@pytest.mark.parametrize(
    ("before", "behind", "asked"),
    [
        ((), (), "tokenizer(prompt, add_special_tokens=True).input_ids"),
        ((1,), (), "tokenizer(prompt, add_special_tokens=True).input_ids"),
        ((1,), (2, 3), "tokenizer(prompt, add_special_tokens=True).input_ids[:-2]"),
    ],
)
def test_the_programs_ask_with_the_tokens_of_the_run(metrics, before, behind, asked):
    tokenizer = Words(before, behind)
    usage = used(tokenizer=tokenizer, wanted=lambda text: [*before, *Words()(text)["input_ids"]])
    assert usage.ids == asked
    transformers, vllm = programs(with_usage(metrics, usage, model=ModelConfig("someone/Their-Model")))
    for program in (transformers, vllm):
        place = {"tokenizer": lambda text, **options: SimpleNamespace(**tokenizer(text, **options))}
        lines = [line for line in program.splitlines() if line.startswith(("prompt = ", "ids = "))]
        exec("\n".join(lines).replace("torch.tensor", ""), place)  # what a reader would run
        assert place["prompt"] == usage.prompt
        found = place["ids"][0] if isinstance(place["ids"][0], list) else place["ids"]
        assert found == [*before, *Words()(usage.prompt)["input_ids"]]


def test_text_that_has_its_own_special_tokens_is_asked_without_the_tokenizers(metrics):
    usage = used(tokenizer=Words(before=(1,)), wanted=lambda text: Words()(text)["input_ids"])
    assert usage.ids == "tokenizer(prompt, add_special_tokens=False).input_ids"
    cut = used(wanted=lambda text: [7, 8])  # a prompt that was cut on the left
    assert cut.ids == "[7, 8]"


def test_the_prompt_is_shown_as_it_is_and_what_ends_an_answer(metrics):
    usage = used()
    card = with_usage(metrics, usage, model=ModelConfig("someone/Their-Model"))
    assert f"\n````text\n{usage.prompt}\n````\n" in card
    assert "An answer ends with `<2>` (token 2) or `<107>` (token 107), and has at most 64 tokens." in card
    transformers, vllm = programs(card)
    assert "stops = [2, 107]" in transformers
    assert "max_new_tokens=64" in transformers
    assert "stop_token_ids=[2, 107]" in vllm
    assert not re.search(r"\n{3}|[ \t]\n|None|\{\{|\{%", card)
    for program in (transformers, vllm):
        compile(program, "card", "exec")
        assert 9 <= len(program.splitlines()) <= 15


def test_a_prompt_that_fits_is_preferred_or_else_the_shortest():
    assert used(texts=("x " * 3000, "a short one")).prompt == "a short one"
    assert used(texts=("x " * 3000, "y " * 2000)).prompt == "y " * 2000


@pytest.mark.parametrize(("rank", "limit"), [(1, 8), (8, 8), (9, 16), (16, 16), (300, 512), (512, 512)])
def test_the_rank_limit_of_vllm_is_one_that_it_has(metrics, rank, limit):
    card = with_usage(metrics, used({"r": rank}))
    assert f"max_lora_rank={limit})" in card
    assert f"--max-lora-rank {limit} " in card


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"r": 513}, "its rank is 513, and the limit --max-lora-rank is at most 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 600}}, "its modules differ in rank or scale, which vLLM does not read"),
        ({"r": 8, "alpha_pattern": {"q_proj": 3}}, "its modules differ in rank or scale, which vLLM does not read"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_has_no_program_for_it(metrics, raw, reason):
    card = with_usage(metrics, used(raw))
    assert f"vLLM cannot serve this adapter beside its base model: {reason}. Serve the two as one model." in card
    assert len(programs(card)) == 1
