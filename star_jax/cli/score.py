"""`star-jax score`: uncertainty scores of a file, without any training."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax.cli.guard import guarded_main
from star_jax.cli.pool_flags import PoolFlags, check_out
from star_jax.cli.pool_reading import open_reader
from star_jax.cli.score_flags import PROGRAM, ScoreConfig, parse_score
from star_jax.cli.score_rows import ScoredRows
from star_jax.errors import ConfigError

if TYPE_CHECKING:
    from star_jax.acquisition.pool_scoring import PoolScores
    from star_jax.acquisition.pools import Pool
    from star_jax.data.examples import Prompt
    from star_jax.data.store import TokenPlace
    from star_jax.data.tasks.task import Task
    from star_jax.data.tokenization import Encoder
    from star_jax.models.architecture import TransformerConfig
    from star_jax.tracking.console import Progress

WHEN_INTERRUPTED = "interrupted; with --out FILE, the same command goes on where it stopped"

_log = logging.getLogger("star_jax.score")  # as a command, the module is called otherwise


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Scores the examples that `argv` names, one JSON object an example, in the file's order."""
    config = parse_score(argv, program)
    out = check_out(config, program, argv, adapter=config.adapter)
    # Imported after parsing, for the same reason as in run.py.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.runs.files import write_jsonl_atomic
    from star_jax.runs.partial_scores import PartialScores
    from star_jax.tracking.console import Progress
    from star_jax.tracking.profiling import profiled

    configure_logging()
    configure_jax()
    progress = Progress()
    with profiled(config.profile, progress.log):
        rows = score_file(config, progress, _beside(out))
    if out is None:
        for row in rows:
            print(json.dumps(row, allow_nan=False))
    else:
        write_jsonl_atomic(out, rows)
        print(f"{len(rows)} examples scored, in {out}")
    if (beside := _beside(out)) is not None:
        PartialScores(beside, "").remove()
    return 0


def _beside(out: Path | None) -> Path | None:
    """Beginning of the names of what is kept while scores come in; None where nothing can be kept."""
    if out is None or (out.exists() and not out.is_file()):
        return None
    return out.with_name(f".{out.name}.scores")


def score_file(config: ScoreConfig, progress: Progress, kept: Path | None = None) -> Sequence[dict[str, Any]]:
    """One object an example: `id`, its measures (`acquisition.uncertainty`), and the response if it is not the file's.

    Measures of disagreement between samples are there only with several.

    Args:
      config: what to score, and with what.
      progress: where to show what is going on.
      kept: beginning of the names of files that keep scores as they come, so that the same command goes on where it
        was interrupted; None keeps nothing.

    Raises:
      ConfigError, DataError: model, adapter or data cannot be used, or the task has no closed answer set.
      ScoreError: a score is not finite; the examples are named.
    """
    import jax
    import numpy as np

    from star_jax.acquisition.pool_scoring import Sampling, passes_over, score_pool
    from star_jax.acquisition.strategy import check_finite
    from star_jax.acquisition.uncertainty import MEASURES
    from star_jax.checkpoints.huggingface import load_model
    from star_jax.checkpoints.peft import load_adapter
    from star_jax.runs.partial_scores import PartialScores

    # All that can be refused is refused before the weights are loaded.
    task, encoder, shape = open_reader(config)
    prompts, pool = _pool(config, task, encoder, kept)
    refuse_large_batches(config, shape, pool)
    warn_of_length(pool, shape.max_position_embeddings)
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
        longest=config.max_prompt_tokens + config.max_response_tokens,
        ignored_fields=config.ignored_fields,
    )
    options: dict[str, Any] = {"key": jax.random.key(config.seed), "sampling": sampling}
    with ExitStack() as stack:
        if kept is not None:
            options["logs"] = stack.enter_context(PartialScores(kept, _origin(config, pool))).log
        tick = stack.enter_context(progress.task("score", passes_over(pool, sampling) * len(prompts), "examples"))
        scores = score_pool(model, adapter, pool, on_batch=tick, **options)
    names = [name for name in MEASURES if sampling is not None or not name.startswith(("bald", "jensen"))]
    for name in ("sequence_nll", "token_entropy"):
        check_finite(scores.measures[name], [prompt.id for prompt in prompts])
    columns = {name: np.asarray(scores.measures[name]) for name in names}
    return ScoredRows(prompts, columns, _responses(scores, task, encoder))


def _origin(config: ScoreConfig, pool: Pool) -> str:
    """Hash of all that the scores depend on."""
    from star_jax.checkpoints.hub import resolve_folder
    from star_jax.runs.score_store import computed_with, pool_digest, weights_fingerprint

    folders = [resolve_folder(config.model), *([] if config.adapter is None else [Path(config.adapter)])]
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("out", "profile")}
    known = {"weights": [weights_fingerprint(folder) for folder in folders], "settings": settings, **computed_with()}
    return pool_digest(json.dumps(known, sort_keys=True, default=str).encode(), pool)


def _pool(config: ScoreConfig, task: Task, encoder: Encoder, kept: Path | None) -> tuple[list[Prompt], Pool]:
    from star_jax.acquisition.pools import BatchSizes, candidate_pool, choose_shapes, generated_pool, proposed_pool
    from star_jax.data.loading import load_examples, load_prompts
    from star_jax.data.run_data import examples_within_limits
    from star_jax.evaluation.predictions import answer_shapes

    sizes = BatchSizes(config.batch_size, config.batch_size)
    if config.answers == "reference":
        loaded = load_examples(task, config.data, "train", config.on_bad_row)
        examples = examples_within_limits(encoder, loaded)[0]
        prompts = [example.prompt for example in examples]
        require_some(prompts)
        rows = encoder.examples(examples, counted=True)
        lengths = [len(row.tokens) for row in rows]
        shapes = choose_shapes([row.prompt_length for row in rows], lengths, max(lengths), sizes)
        return prompts, proposed_pool(rows, shapes.sequences)
    every = load_prompts(task, config.data, "train", config.on_bad_row)
    fitting = encoder.within_limits(every, {}, _token_place(config, kept))
    prompts = fitting.kept
    require_some(prompts)
    if config.answers == "candidates":
        if task.candidates is None:
            raise ConfigError(f"--answers is candidates, but task {task.name} has no closed answer set")
        return prompts, candidate_pool(encoder, prompts, task.candidates, config.batch_size)
    shapes = answer_shapes(encoder, fitting.tokens.lengths, config.batch_size)
    return prompts, generated_pool(encoder, fitting.tokens, shapes)


def _token_place(config: ScoreConfig, kept: Path | None) -> TokenPlace | None:
    """Where the tokens of a large file are kept until its scores are written."""
    from star_jax.checkpoints.fingerprints import folder_fingerprint
    from star_jax.checkpoints.hub import resolve_folder
    from star_jax.data.store import TokenPlace, tokenizer_origin

    if kept is None:
        return None
    origin = tokenizer_origin(folder_fingerprint(resolve_folder(config.model)))
    return TokenPlace(kept.with_name(f"{kept.name}-"), origin)


def refuse_large_batches(config: PoolFlags, shape: TransformerConfig, pool: Pool) -> None:
    """Refuses batches of which a device could not hold even one layer, or the keys and values of responses."""
    from star_jax.acquisition.pools import CandidatePool, GeneratedPool
    from star_jax.environment import memory_bytes
    from star_jax.experiment.sizes import Demand, cache_bytes, hidden_bytes, refuse_what_does_not_fit

    demands = []
    shapes = pool.shapes_read(shape) if isinstance(pool, CandidatePool) else pool.shapes
    for rows, width, capacity in shapes:
        size, what = hidden_bytes(shape, capacity), "one layer of a batch"
        if isinstance(pool, GeneratedPool):
            size, what = cache_bytes(shape, rows, width + pool.response_limit), "keys and values of a batch"
        demands.append(Demand("--batch-size", config.batch_size, what, size))
    refuse_what_does_not_fit(demands, memory_bytes())


def warn_of_length(pool: Pool, most: int) -> None:
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


def require_some(prompts: Sequence[Prompt]) -> None:
    """Refuses a file of which nothing is left."""
    if not prompts:
        raise ConfigError("no example is within --max-prompt-tokens; raise it, or set --too-long to truncate-left")


def _responses(scores: PoolScores, task: Task, encoder: Encoder) -> Callable[[int], str] | None:
    """Gives the text of an example's response."""
    import numpy as np

    if scores.responses is None:
        return None
    responses = np.asarray(scores.responses)
    if scores.lengths is None:
        assert task.candidates is not None
        candidates = task.candidates
        return lambda number: candidates[responses[number]]
    lengths = np.asarray(scores.lengths)
    return lambda number: encoder.text(responses[number, : lengths[number]])


def command() -> None:
    """`python -m star_jax.score`."""
    sys.exit(guarded_main(lambda argv: main(argv, "python -m star_jax.score"), None, WHEN_INTERRUPTED))
