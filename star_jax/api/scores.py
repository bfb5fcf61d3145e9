"""Scores of a pool by name, and batches selected by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Measure
from star_jax.acquisition.pool_scoring import Sampling, generated_texts
from star_jax.acquisition.pool_scoring import score_pool as score_batches
from star_jax.acquisition.strategy import Query, check_finite, check_picks, get_strategy
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.active.query import select
from star_jax.active.vectors import PoolRows, Watch, pool_vectors
from star_jax.api.checks import check_key, check_whole
from star_jax.api.model import Model, TunedAdapter
from star_jax.api.pool import ExamplePool, OnBatch, TokenLimits, tokenize, unwatched
from star_jax.config import AcquisitionConfig, DropoutMode, LoraConfig
from star_jax.errors import ConfigError


@dataclass(frozen=True)
class Scores(Mapping[str, np.ndarray]):
    """Uncertainty measures of a pool by name, each `N` float32, as a mapping: `scores["token_entropy"]`.

    Attributes:
      ids: names of the N examples, in order.
      responses: text that each example was scored on.
      measures: of the model with its adapter, or of the base model where there is none.
      base: measures of the base model; the same where there is no adapter.
      samples: whether the measures are averages over Monte-Carlo dropout samples.
      features: vectors that were asked for, `N×D` or `N×W`.
    """

    ids: Sequence[str] = field(repr=False)
    responses: Sequence[str] = field(repr=False)
    measures: Mapping[str, np.ndarray] = field(repr=False)
    base: Mapping[str, np.ndarray] = field(repr=False)
    samples: bool = False
    features: Mapping[Feature, np.ndarray] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.measures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.measures)

    def __len__(self) -> int:
        return len(self.measures)

    def to_pandas(self) -> Any:
        """A data frame: a row an example, its id as the index, the response and every measure."""
        import pandas

        columns = {"response": list(self.responses)} | {name: np.asarray(self[name]) for name in self}
        return pandas.DataFrame(columns, index=pandas.Index(list(self.ids), name="id"))


def score_pool(
    model: Model,
    pool: ExamplePool,
    adapter: TunedAdapter | None = None,
    *,
    mc_samples: int = 1,
    dropout: DropoutMode = "shared",
    features: Sequence[Embedding | GradientSketch] = (),
    limits: TokenLimits | None = None,
    batch_size: int = 16,
    key: int = 0,
    on_batch: OnBatch = unwatched,
) -> Scores:
    """How uncertain a model is about each example; labels, where there are some, are not looked at.

    A closed answer set is scored exactly, as a distribution over the answers; else the model's own greedy answer is.

    Args:
      model: the base model.
      pool: examples.
      adapter: a LoRA on top; the base model alone where None.
      mc_samples: Monte-Carlo dropout passes over the adapter; 1 is a single pass without dropout.
      dropout: masks of the passes: one a pass (`shared`), one an example (`tied`), or one a token (`per_token`).
      features: vectors that are wanted besides the measures. A gradient sketch is of the adapter; one of the base
        model, of a fresh adapter with the settings of `LoraConfig()`.
      limits: of tokens.
      batch_size: prompts that a device scores at once.
      key: seed of the dropout masks.
      on_batch: told the number of examples of each batch.

    Raises:
      ConfigError: samples without an adapter, or with one that was trained without dropout; or a gradient sketch of the
        full model without an adapter.
      ScoreError: a score is not finite; the examples are named.

    Example:
      >>> import star_jax as sj
      >>> rows = [{"question": "rev 3 1 4 ="}, {"question": "desc 2 7 5 ="}]
      >>> scores = sj.score_pool(sj.load_model("embedded:skills"), sj.read_pool(rows, "skills"))
      >>> scores.responses[0]
      '4 1 3'
      >>> bool(scores["token_entropy"][1] > scores["token_entropy"][0])
      True
    """
    sampling = None
    if check_whole("mc_samples", mc_samples, 1) > 1:
        if adapter is None:
            raise ConfigError(
                f"mc_samples is {mc_samples} and there is no adapter: dropout acts on the adapter's input, and without "
                "one all passes are the same; pass adapter=, or leave mc_samples out"
            )
        sampling = Sampling(mc_samples, adapter.dropout, dropout)
    if adapter is None and any(isinstance(need, GradientSketch) and need.model == "full" for need in features):
        raise ConfigError("a gradient sketch of the full model is of its adapter, and there is none; pass adapter=")
    tokens = tokenize(model, pool, limits, batch_size)
    batches, names = tokens.batches(pool), pool.ids
    weights = None if adapter is None else adapter.weights
    found = score_batches(
        model.weights, weights, batches, key=jax.random.key(check_key(key)), sampling=sampling, on_batch=on_batch
    )
    of_base = found if adapter is None else score_batches(model.weights, None, batches, on_batch=on_batch)
    for scored in (found, of_base):
        check_finite(scored.measures["token_entropy"], names)
    if tokens.answers == "candidates":
        assert pool.task.candidates is not None
        assert found.responses is not None
        responses = [pool.task.candidates[choice].strip() for choice in np.asarray(found.responses)]
    else:
        responses = generated_texts(found, tokens.encoder)
    vectors: dict[Feature, np.ndarray] = {}
    for which, lora, answered in (("full", weights, found), ("base", None, of_base)):
        needs = [need for need in features if need.model == which]
        rows = PoolRows(tokens.prompts, tokens.shapes.prompts, batches, answered)
        made = pool_vectors(model.weights, lora, needs, rows, LoraConfig(), Watch(on_batch))
        vectors |= {need: np.asarray(array) for need, array in made.items()}
    measures, base = ({name: np.asarray(one.measures[name]) for name in MEASURES} for one in (found, of_base))
    return Scores(names, responses, measures, base, sampling is not None, vectors)


def select_batch(
    scores: Scores,
    *,
    count: int,
    strategy: str = "star",
    query: int = 0,
    queries: int = 9,
    labelled: Sequence[str] = (),
    key: int = 0,
    acquisition: AcquisitionConfig | None = None,
) -> list[str]:
    """The examples to label next.

    Args:
      scores: of the pool, from `score_pool`.
      count: how many.
      strategy: name of a strategy, the package's own or a registered one.
      query: t, the number of queries made before; the weight of the base model falls with it.
      queries: T, how many there will be; read by the schedules `linear` and `cosine`.
      labelled: ids that are not to be picked, because they have a label already.
      key: seed of what is left to chance.
      acquisition: parts of the strategy to replace.

    Returns:
      Ids, the first pick first.

    Raises:
      ConfigError: there is no such strategy, it needs what was not scored, or there are fewer unlabelled examples.

    Example:
      >>> import star_jax as sj
      >>> rows = [{"question": "rev 3 1 4 ="}, {"question": "desc 2 7 5 ="}]
      >>> scores = sj.score_pool(sj.load_model("embedded:skills"), sj.read_pool(rows, "skills"))
      >>> sj.select_batch(scores, strategy="entropy", count=1)
      ['row-000002']
    """
    chosen = get_strategy(strategy, acquisition)
    count, query, queries = (
        check_whole("count", count),
        check_whole("query", query, 0),
        check_whole("queries", queries, 1),
    )
    if isinstance(labelled, str):
        raise ConfigError(f"labelled is the text {labelled!r}; pass a list of ids")
    taken = set(labelled)
    unlabelled = np.asarray([name not in taken for name in scores.ids])
    if not 1 <= count <= unlabelled.sum():
        raise ConfigError(f"count is {count} and {unlabelled.sum()} examples are unlabelled; ask for 1 to that many")
    features = tuple(jnp.asarray(_feature(need, scores, strategy)) for need in chosen.needs)
    indices, _ = select(
        chosen,
        jax.random.key(check_key(key)),
        features,
        jnp.asarray(unlabelled),
        Query(jnp.asarray(query), queries, count),
        jnp.asarray(~unlabelled),
    )
    picked = np.asarray(indices)
    check_picks(chosen, picked, unlabelled)
    return [scores.ids[place] for place in picked.tolist()]


_DISAGREEMENT = ("bald", "jensen_gap")
"""Beginnings of measures that are 0 for a single pass. Of the others, a single pass is an estimate without noise."""


def _feature(need: Feature, scores: Scores, strategy: str) -> np.ndarray:
    known = isinstance(need, Embedding | GradientSketch) or (isinstance(need, Measure) and not need.of_answers)
    if not known:
        raise ConfigError(f"strategy {strategy} needs {need}, which score_pool does not give; use it in an ActiveLoop")
    if isinstance(need, Measure):
        if need.samples and not scores.samples and need.name.startswith(_DISAGREEMENT):
            raise ConfigError(
                f"strategy {strategy} needs the disagreement of dropout samples, and there is a single pass; pass "
                "adapter= and mc_samples= to score_pool"
            )
        return scores.base[need.name] if need.model == "base" else scores.measures[need.name]
    if need not in scores.features:
        raise ConfigError(f"strategy {strategy} needs {need}; pass features=[...] with it to score_pool")
    return scores.features[need]
