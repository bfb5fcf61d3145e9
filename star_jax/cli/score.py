"""`star-jax score`: uncertainty scores of a file, without any training."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax.cli import flags
from star_jax.cli.guard import guarded_main
from star_jax.cli.outputs import check_output_file, check_output_folder
from star_jax.cli.score_flags import PROGRAM, ScoreConfig, parse_score
from star_jax.errors import ConfigError

if TYPE_CHECKING:
    from star_jax.acquisition.pool_scoring import PoolScores
    from star_jax.acquisition.pools import Pool
    from star_jax.data.examples import Prompt
    from star_jax.data.tasks.task import Task
    from star_jax.data.tokenization import Encoder
    from star_jax.models.architecture import TransformerConfig
    from star_jax.tracking.console import Progress

WHEN_INTERRUPTED = "interrupted; nothing was written, and the same command starts anew"

_log = logging.getLogger("star_jax.score")  # as a command, the module is called otherwise


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Scores the examples that `argv` names, one JSON object an example, in the file's order."""
    config = parse_score(argv, program)
    folders = {"--model": config.model, "--adapter": config.adapter}
    plugins = {f"--plugins {name}": name for name in config.plugins}
    read = {"--data": config.data, "--config": flags.given(program, argv, "config")["config"], **plugins}
    out = check_output_file("--out", config.out, read, folders)
    if config.profile is not None:
        check_output_folder("--profile", config.profile, folders)
    # Imported after parsing, for the same reason as in run.py.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.runs.files import write_jsonl_atomic
    from star_jax.tracking.console import Progress
    from star_jax.tracking.profiling import profiled

    configure_logging()
    configure_jax()
    progress = Progress()
    with profiled(config.profile, progress.log):
        rows = score_file(config, progress)
    if out is None:
        for row in rows:
            print(json.dumps(row, allow_nan=False))
    else:
        write_jsonl_atomic(out, rows)
        print(f"{len(rows)} examples scored, in {out}")
    return 0


def score_file(config: ScoreConfig, progress: Progress) -> list[dict[str, Any]]:
    """One object an example: `id`, its measures (`acquisition.uncertainty`), and the response if it is not the file's.

    Measures of disagreement between samples are there only with several.

    Args:
      config: what to score, and with what.
      progress: where to show what is going on.

    Raises:
      ConfigError, DataError: model, adapter or data cannot be used, or the task has no closed answer set.
      ScoreError: a score is not finite; the examples are named.
    """
    import jax
    import numpy as np

    from star_jax.acquisition.pool_scoring import Sampling, passes_over, score_pool
    from star_jax.acquisition.strategy import check_finite
    from star_jax.acquisition.uncertainty import MEASURES
    from star_jax.checkpoints.hf_config import read_config
    from star_jax.checkpoints.hub import end_tokens, load_tokenizer, resolve_folder
    from star_jax.checkpoints.huggingface import load_model
    from star_jax.checkpoints.peft import load_adapter
    from star_jax.data.tasks import get_task
    from star_jax.data.tokenization import Encoder, Limits
    from star_jax.environment import memory_bytes
    from star_jax.experiment.sizes import Demand, cache_bytes, refuse_what_does_not_fit, weight_bytes

    tokenizer = load_tokenizer(config.model)
    task = get_task(config.task, config.format, tokenizer)
    limits = Limits(config.max_prompt_tokens, config.max_response_tokens, config.too_long)
    longest = config.max_prompt_tokens + config.max_response_tokens
    # All that can be refused is refused before the weights are loaded.
    shape = read_config(resolve_folder(config.model), config.dtype, longest, config.ignored_fields)
    weights = Demand("--model", config.model, "its weights", weight_bytes(shape, config.quantization))
    cache = cache_bytes(shape, 1, config.max_response_tokens)
    response = Demand("--max-response-tokens", config.max_response_tokens, "keys and values of one response", cache)
    refuse_what_does_not_fit([weights, response], memory_bytes())
    encoder = Encoder(tokenizer, task, limits, vocab_size=shape.vocab_size, end_ids=end_tokens(config.model))
    prompts, pool = _pool(config, task, encoder)
    _refuse_large_batches(config, shape, pool)
    _warn_of_length(pool, shape.max_position_embeddings)
    adapter, sampling = None, None
    if config.adapter is not None:
        adapter, raw = load_adapter(Path(config.adapter), shape)
        if config.mc_samples > 1:
            rate = raw.get("lora_dropout", 0.0) if config.dropout_rate is None else config.dropout_rate
            if rate == 0:
                raise ConfigError(
                    f"{config.adapter} says lora_dropout 0, where all --mc-samples are the same; pass --dropout-rate"
                )
            sampling = Sampling(config.mc_samples, rate, config.dropout)
    model = load_model(
        config.model,
        config.dtype,
        quantization=config.quantization,
        longest=longest,
        ignored_fields=config.ignored_fields,
    )
    with progress.task("score", passes_over(pool, sampling) * len(prompts), "examples") as tick:
        key = jax.random.key(config.seed)
        scores = score_pool(model, adapter, pool, key=key, sampling=sampling, on_batch=tick)
    names = [name for name in MEASURES if sampling is not None or not name.startswith(("bald", "jensen"))]
    columns = {name: np.asarray(scores.measures[name]).tolist() for name in names}
    for name in ("sequence_nll", "token_entropy"):
        check_finite(scores.measures[name], [prompt.id for prompt in prompts])
    texts = _responses(scores, task, encoder)
    return [
        {"id": prompt.id}
        | {name: column[place] for name, column in columns.items()}
        | ({"response": texts[place]} if texts is not None else {})
        for place, prompt in enumerate(prompts)
    ]


def _pool(config: ScoreConfig, task: Task, encoder: Encoder) -> tuple[list[Prompt], Pool]:
    from star_jax.acquisition.pools import BatchSizes, candidate_pool, choose_shapes, proposed_pool
    from star_jax.data.loading import load_examples, load_prompts
    from star_jax.data.run_data import examples_within_limits
    from star_jax.evaluation.predictions import prompt_pool

    sizes = BatchSizes(config.batch_size, config.batch_size)
    if config.answers == "reference":
        loaded = load_examples(task, config.data, "train", config.on_bad_row)
        examples = examples_within_limits(encoder, loaded)[0]
        prompts = [example.prompt for example in examples]
        _require_some(prompts)
        rows = encoder.examples(examples, counted=True)
        lengths = [len(row.tokens) for row in rows]
        shapes = choose_shapes([row.prompt_length for row in rows], lengths, max(lengths), sizes)
        return prompts, proposed_pool(rows, shapes.sequences)
    prompts = encoder.within_limits(load_prompts(task, config.data, "train", config.on_bad_row), labels={}).kept
    _require_some(prompts)
    if config.answers == "candidates":
        if task.candidates is None:
            raise ConfigError(f"--answers is candidates, but task {task.name} has no closed answer set")
        return prompts, candidate_pool(encoder, prompts, task.candidates, config.batch_size)
    return prompts, prompt_pool(encoder, prompts, config.batch_size)


def _refuse_large_batches(config: ScoreConfig, shape: TransformerConfig, pool: Pool) -> None:
    """Refuses batches of which a device could not hold even one layer, or the keys and values of responses."""
    from star_jax.acquisition.pools import GeneratedPool
    from star_jax.environment import memory_bytes
    from star_jax.experiment.sizes import Demand, cache_bytes, hidden_bytes, refuse_what_does_not_fit

    demands = []
    for rows, width, capacity in pool.shapes:
        size, what = hidden_bytes(shape, capacity), "one layer of a batch"
        if isinstance(pool, GeneratedPool):
            size, what = cache_bytes(shape, rows, width + pool.response_limit), "keys and values of a batch"
        demands.append(Demand("--batch-size", config.batch_size, what, size))
    refuse_what_does_not_fit(demands, memory_bytes())


def _warn_of_length(pool: Pool, most: int) -> None:
    """Says so where sequences are longer than what the model was trained to read."""
    from star_jax.acquisition.pools import GeneratedPool, longest_row

    longest = longest_row(pool)
    if isinstance(pool, GeneratedPool):
        longest += pool.response_limit
    if longest > most:
        _log.warning(
            "the longest example may take %d tokens (prompt and response), and the model reads %d "
            "(max_position_embeddings); scores beyond that mean little: lower --max-response-tokens",
            longest,
            most,
        )


def _require_some(prompts: Sequence[Prompt]) -> None:
    if not prompts:
        raise ConfigError("no example is within --max-prompt-tokens; raise it, or set --too-long to truncate-left")


def _responses(scores: PoolScores, task: Task, encoder: Encoder) -> list[str] | None:
    import numpy as np

    from star_jax.acquisition.pool_scoring import generated_texts

    if scores.responses is None:
        return None
    if scores.lengths is None:
        assert task.candidates is not None
        return [task.candidates[choice] for choice in np.asarray(scores.responses)]
    return generated_texts(scores, encoder)


def command() -> None:
    """`python -m star_jax.score`."""
    sys.exit(guarded_main(lambda argv: main(argv, "python -m star_jax.score"), None, WHEN_INTERRUPTED))
