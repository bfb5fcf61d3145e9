"""What a run works on: loaded, fitted to the limits, counted and fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from star_jax.config import DataConfig, LabelsConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import load_pool_and_test
from star_jax.data.store import TokenPlace
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Fitting, TokenizedExample
from star_jax.errors import ConfigError


class TokenizedSet(NamedTuple):
    """Labelled examples with their tokens.

    Attributes:
      examples: prompts with gold responses.
      prompts: tokens of each prompt alone, as it is answered: the last may become another with a response behind it.
      rows: tokens of each prompt with its response.
    """

    examples: Sequence[Example]
    prompts: Sequence[np.ndarray]
    rows: list[TokenizedExample]


class RunData(NamedTuple):
    """What a seed runs on, within the limits.

    Attributes:
      pool: prompts, sorted by id.
      tokens: of each of them.
      labels: id -> response of those that have one, for the annotator alone.
      test: test set.
      ids: of all rows that the pool is drawn from.
      facts: data.json: fingerprints of pool and test set, and how many rows there are, were left out or were cut.
      skipped: ids of pool prompts that the data say cannot be labelled.
      columns: id -> columns of its row that a person is to see.
    """

    pool: list[Prompt]
    tokens: Sequence[np.ndarray]
    labels: dict[str, str]
    test: TokenizedSet
    ids: frozenset[str]
    facts: dict[str, Any]
    skipped: frozenset[str] = frozenset()
    columns: Mapping[str, Mapping[str, str]] = MappingProxyType({})

    @property
    def unlabelled(self) -> int:
        """Pool prompts without a response, of which nobody has said that they cannot be labelled."""
        return len(self.pool) - len(self.labels) - len(self.skipped)

    def labelled(self) -> list[Example]:
        """Pool prompts with a response, and that response."""
        return [Example(prompt, self.labels[prompt.id]) for prompt in self.pool if prompt.id in self.labels]

    def counts(self) -> dict[str, int]:
        """The facts that are numbers, for summary.json."""
        return {name: value for name, value in self.facts.items() if isinstance(value, int)}


def prepare(
    config: DataConfig,
    task: Task,
    encoder: Encoder,
    seed: int,
    labels: LabelsConfig | None = None,
    place: TokenPlace | None = None,
) -> RunData:
    """Loads pool and test set of a run and applies the limits.

    Args:
      config: where they are from.
      task: what a row is.
      encoder: with the limits.
      seed: of the draw of the pool.
      labels: how labels are written.
      place: where the tokens of a large pool are kept; in memory alone where None.

    Raises:
      ConfigError, DataError: a source or a row cannot be used, or no test example is within the limits.
    """
    loaded = load_pool_and_test(config, task, seed, labels)
    pool = encoder.within_limits(loaded.pool, loaded.labels, place)
    test, test_fitting = examples_within_limits(encoder, loaded.test)
    if not test:
        raise ConfigError(
            "no test example is within data.max_prompt_tokens; raise it or set data.too_long to truncate-left"
        )
    data = RunData(
        pool=pool.kept,
        tokens=pool.tokens,
        labels={prompt.id: loaded.labels[prompt.id] for prompt in pool.kept if prompt.id in loaded.labels},
        test=tokenize_examples(encoder, test, counted=True),
        ids=loaded.ids,
        facts={
            "pool": fingerprint(pool.kept),
            "test": fingerprint([example.prompt for example in test], [example.response for example in test]),
            "pool_examples": len(pool.kept),
            "test_examples": len(test),
            "pool_bad_rows": loaded.bad_pool_rows,
            "test_bad_rows": loaded.bad_test_rows,
            "left_out_of_pool": pool.prompts_left_out,
            "left_out_of_test": test_fitting.prompts_left_out,
            "pool_prompts_cut": pool.prompts_cut,
            "test_prompts_cut": test_fitting.prompts_cut,
            "pool_responses_cut": pool.responses_cut,
            "test_responses_cut": test_fitting.responses_cut,
            "duplicate_prompts": loaded.duplicate_prompts,
            "test_overlap": loaded.test_overlap,
        },
        skipped=loaded.skipped & {prompt.id for prompt in pool.kept},
        columns=loaded.columns,
    )
    data.facts["pool_unlabelled"] = data.unlabelled
    if data.skipped:
        data.facts["pool_skipped"] = len(data.skipped)
    return data


def tokenize_examples(encoder: Encoder, examples: Sequence[Example], *, counted: bool = False) -> TokenizedSet:
    """Tokens of labelled examples; arguments and errors as those of `Encoder.examples`."""
    prompts = encoder.prompts([example.prompt for example in examples])
    return TokenizedSet(examples, prompts, encoder.examples(examples, counted=counted))


def examples_within_limits(encoder: Encoder, examples: Sequence[Example]) -> tuple[list[Example], Fitting]:
    """Those of some labelled examples that are used, and what the limits did to them all.

    Raises:
      DataError: as `Encoder.within_limits`.
    """
    labels = {example.id: example.response for example in examples}
    fitting = encoder.within_limits([example.prompt for example in examples], labels)
    kept = {prompt.id for prompt in fitting.kept}
    return [example for example in examples if example.id in kept], fitting


def fingerprint(prompts: Sequence[Prompt], responses: Sequence[str] = ()) -> str:
    """Hash of ids and texts: a run's state holds places in the pool, and means nothing for another one.

    A test set's responses count as well: figures of another key do not compare. Those of a pool do not, since a
    selection must not know them.
    """
    # That of the JSON of all of them, which is not held as one text.
    digest = hashlib.sha256(b"[[")
    for number, prompt in enumerate(prompts):
        digest.update((", " * (number > 0) + json.dumps([prompt.id, prompt.text])).encode())
    digest.update(f"], {json.dumps(list(responses))}]".encode())
    return digest.hexdigest()


def rows_fingerprint(rows: Sequence[TokenizedExample]) -> str:
    """Hash of tokenised rows and their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray([row.prompt_length, len(row.tokens), *row.tokens], np.int64).tobytes())
    return digest.hexdigest()
