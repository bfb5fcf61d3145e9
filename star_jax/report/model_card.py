"""The model card of an adapter: what it is for, what it was trained on, and how good it is.

A card goes where the adapter goes, so it has no path of the machine that it was made on: hub names are written as they
are, of anything local only the last part of its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from star_jax import __version__
from star_jax.acquisition.strategy import get_strategy
from star_jax.checkpoints.hub import EMBEDDED
from star_jax.config import ExperimentConfig, TrainingConfig
from star_jax.data.examples import Prompt
from star_jax.data.tokenization import Encoder
from star_jax.report.rules import rule_of

TEMPLATE = "model_card.md.jinja"

TAGS = ("lora", "active-learning", "star_jax")

RESULTS = {
    "accuracy": "accuracy",
    "nll": "NLL, nats a gold token",
    "brier": "Brier score",
    "ece": "ECE",
    "auroc": "AUROC of uncertainty against errors",
}
"""Metric -> what the card calls it."""

ANSWERS = {
    "generated": "the model's own greedy answers",
    "candidates": "all answers of a closed set",
    "reference": "gold answers (an oracle)",
}
"""`scoring.answers` in words."""

CONFIDENCE = {
    "sequence": "the probability of the whole answer",
    "mean_token": "the geometric mean of the probabilities of an answer's tokens",
}
"""`evaluation.confidence` in words."""


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 512)
"""What vLLM takes for `--max-lora-rank`."""

MOST_CHARACTERS = 2000
"""Of the prompt that a card shows, where the pool has one that is as short."""


class Usage(NamedTuple):
    """How an adapter is asked.

    Attributes:
      prompt: text of a prompt as the model reads it, special tokens included where they are part of the text.
      ids: Python expression of its tokens, given `tokenizer` and `prompt`.
      stops: number and text of each token that ends an answer.
      most_tokens: longest answer, tokens.
      rank: largest rank of a module.
      uniform: whether all modules have one rank and one scale, as vLLM takes them to have.
    """

    prompt: str
    ids: str
    stops: list[tuple[int, str]]
    most_tokens: int
    rank: int
    uniform: bool

    @property
    def vllm_rank(self) -> int | None:
        """The least `--max-lora-rank` that is enough; None where none is, or vLLM would read the adapter wrongly."""
        return next((rank for rank in VLLM_RANKS if rank >= self.rank), None) if self.uniform else None


def usage_of(encoder: Encoder, pool: Sequence[Prompt], raw: Mapping[str, Any]) -> Usage:
    """How an adapter is asked that was trained through an encoder.

    Args:
      encoder: of the run.
      pool: its prompts, of which the first that is not too long to show is shown, or else the shortest.
      raw: adapter_config.json.
    """
    short = (prompt for prompt in pool if len(prompt.text) <= MOST_CHARACTERS)
    prompt = next(short, None) or min(pool, key=lambda one: len(one.text))
    tokenizer = encoder.tokenizer
    stops = [(number, str(tokenizer.convert_ids_to_tokens(number))) for number in encoder.end_ids]
    ranks = [raw["r"], *raw.get("rank_pattern", {}).values()]
    uniform = not raw.get("rank_pattern") and not raw.get("alpha_pattern")
    ids = _ids_expression(encoder, prompt)
    return Usage(prompt.text, ids, stops, encoder.limits.response, max(ranks), uniform)


def _ids_expression(encoder: Encoder, prompt: Prompt) -> str:
    """Python that gives the tokens that the model was asked with, from `tokenizer` and `prompt`."""
    wanted = encoder.prompts([prompt])[0].tolist()
    for added in (True, False):
        given = list(encoder.tokenizer(prompt.text, add_special_tokens=added)["input_ids"])
        if given[: len(wanted)] == wanted:
            behind = len(given) - len(wanted)  # what a tokenizer adds behind a text would end the prompt
            return f"tokenizer(prompt, add_special_tokens={added}).input_ids{f'[:-{behind}]' if behind else ''}"
    return str(wanted)


class Base(NamedTuple):
    """The base model as a card names it.

    Attributes:
      name: hub name, `embedded:NAME`, or the last part of a path.
      hub: whether `name` is one of the hub.
      shipped: whether the model is part of the package.
    """

    name: str
    hub: bool
    shipped: bool

    @property
    def place(self) -> str:
        """What a reader puts where a model is asked for."""
        return self.name if self.hub or self.shipped else f"PATH/TO/{self.name}"


def model_card(
    config: ExperimentConfig,
    strategy: str,
    seed: int,
    metrics: Mapping[str, Any],
    facts: Mapping[str, Any],
    usage: Usage | None = None,
) -> str:
    """README.md of an adapter folder, in the format of the Hugging Face hub.

    Args:
      config: the experiment.
      strategy: name of the run's strategy.
      seed: of the run.
      metrics: row of metrics.jsonl of the adapter's round: its number, its labels, and the figures in `RESULTS`, where
        None is one that does not exist.
      facts: data.json of the run; its `pool_examples` and `test_examples` are read.
      usage: how the adapter is asked; None leaves the prompt and its programs out.

    Returns:
      YAML front matter and Markdown.

    Raises:
      ConfigError: there is no such strategy.
      KeyError, jinja2.UndefinedError: `metrics` or `facts` lacks a figure.
    """
    base = _base(config.model.path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["public"] = _public
    environment.filters["python"] = repr
    environment.filters["fenced"] = _fenced
    text = environment.get_template(TEMPLATE).render(
        config=config,
        base=base,
        strategy=get_strategy(strategy, config.acquisition),
        seed=seed,
        metrics=metrics,
        facts=facts,
        held_back=_held_back(config.training),
        answers=ANSWERS,
        confidence=CONFIDENCE,
        results=RESULTS,
        usage=usage,
        most_rank=VLLM_RANKS[-1],
        name=f"{config.data.task}-{strategy}-seed-{seed}",
        rule=rule_of(config.to_dict()),
        version=__version__,
    )
    return f"---\n{_front_matter(config, base, strategy, seed, metrics)}\n---\n\n{text}"


def _fenced(text: str) -> str:
    """A text as a block of Markdown, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _front_matter(config: ExperimentConfig, base: Base, strategy: str, seed: int, metrics: Mapping[str, Any]) -> str:
    # Imported here: the hub client is slow to load.
    from huggingface_hub import EvalResult, ModelCardData

    task, train, test = config.data.task, _hub_data(config.data.train), _hub_data(config.data.test)
    results = [
        EvalResult("text-generation", test or task, test or task, metric, float(metrics[metric]))
        for metric in ("accuracy", "ece")
    ]
    card = ModelCardData(
        base_model=base.name if base.hub else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=list(TAGS),
        datasets=None if train is None else [train],
        model_name=f"{task}-{strategy}-seed-{seed}",
        eval_results=results,
    )
    return card.to_yaml()


def _base(path: str) -> Base:
    shipped = path.startswith(EMBEDDED)
    hub = not shipped and not _is_local(path) and path.count("/") == 1
    return Base(_public(path), hub, shipped)


def _hub_data(source: str | None) -> str | None:
    """The hub's name of a data set, without configuration and split; None for anything else."""
    if source is None or _is_local(source):
        return None
    return source.split("@")[0].split(":")[0]


def _is_local(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or Path(path).exists()


def _public(path: str) -> str:
    """A hub name as it is; of a path its last part."""
    return Path(path).expanduser().resolve().name if _is_local(path) else path


def _held_back(training: TrainingConfig) -> list[str]:
    """What keeps the adapter small, or unsure."""
    terms = {
        "weight decay {} on A": training.decay_a,
        "weight decay {} on B": training.decay_b,
        "{} · ‖B‖² in the loss": training.l2_b,
        "confidence penalty {}": training.confidence_penalty,
        "label smoothing {}": training.label_smoothing,
    }
    return [term.format(value) for term, value in terms.items() if value]
