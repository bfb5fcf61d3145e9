"""`star-jax select`: what to label, picked all at once by the base model, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from star_jax.cli.outputs import TABLES, write_rows
from star_jax.cli.pool_flags import check_out
from star_jax.cli.pool_reading import Reader, open_reader
from star_jax.cli.score import refuse_large_batches, require_some, warn_of_length
from star_jax.cli.select_flags import PROGRAM, SelectConfig, parse_select
from star_jax.errors import ConfigError

if TYPE_CHECKING:
    from star_jax.acquisition.strategy import Strategy
    from star_jax.active.state import Choice, Problem
    from star_jax.config import ExperimentConfig
    from star_jax.tracking.console import Progress

WHEN_INTERRUPTED = "interrupted; nothing was written, and the same command starts anew"


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Picks as `argv` says; one row a pick, the first pick first."""
    config = parse_select(argv, program)
    out = check_out(config, program, argv, endings=TABLES)
    # Imported after parsing, for the same reason as in run.py.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.tracking.console import Progress
    from star_jax.tracking.profiling import profiled

    configure_logging()
    configure_jax()
    progress = Progress()
    with profiled(config.profile, progress.log):
        rows = select_file(config, progress)
    write_rows(out, rows)
    if out is not None:
        print(f"{len(rows)} examples picked by {config.strategy}, in {out}; label them in its column response")
    return 0


def select_file(config: SelectConfig, progress: Progress) -> list[dict[str, Any]]:
    """A row a pick, the first pick first: `id`, `prompt`, an empty `response`, `rank`, and `score`.

    The picks are the first labels of a run with the same pool, seed and strategy.

    Args:
      config: what to pick from, and how.
      progress: where to show what is going on.

    Raises:
      ConfigError, DataError: model, data or strategy cannot be used, or there are fewer prompts than picks.
      ScoreError: a score is not finite; the examples are named.
    """
    from star_jax.acquisition.settings import check_groups
    from star_jax.acquisition.strategy import get_strategy
    from star_jax.config import ExperimentConfig, ScoringConfig
    from star_jax.registry import STRATEGIES

    STRATEGIES.get(config.strategy, "--strategy")
    strategy = get_strategy(config.strategy, config.acquisition)
    experiment = ExperimentConfig(
        acquisition=config.acquisition, lora=config.lora, scoring=ScoringConfig(answers=config.answers)
    )
    _check_strategy(strategy, experiment)
    # All that can be refused is refused before the weights are loaded.
    reader = open_reader(config)
    check_groups(strategy, reader.task)
    problem = _problem(config, reader)
    choice = _pick(config, experiment, strategy, problem, progress)
    scores: Any = [None] * len(problem.prompts) if choice.scores is None else choice.scores.tolist()
    return [
        {
            "id": problem.prompts[place].id,
            "prompt": problem.prompts[place].readable,
            "response": None,
            "rank": rank,
            "score": scores[place],
        }
        for rank, place in enumerate(choice.picked.tolist())
    ]


def _check_strategy(strategy: Strategy, experiment: ExperimentConfig) -> None:
    """Refuses a strategy that is about an adapter, or that fails."""
    from star_jax.acquisition.settings import check_strategy_settings

    if strategy.sampled:
        raise ConfigError(
            f"--strategy {strategy.name} averages over dropout samples of an adapter, and there is none before a "
            "training; choose another one, for example base_only"
        )
    check_strategy_settings(strategy, experiment)


def _problem(config: SelectConfig, reader: Reader) -> Problem:
    """Pool and model, the model loaded last."""
    from star_jax.acquisition.pools import Pool, candidate_pool, generated_pool
    from star_jax.active.state import Problem
    from star_jax.annotators.oracle import SimulatedOracle
    from star_jax.checkpoints.huggingface import load_model
    from star_jax.data.loading import load_prompts
    from star_jax.data.targets import load_targets
    from star_jax.evaluation.predictions import answer_shapes

    task, encoder, shape = reader
    loaded = load_prompts(task, config.data, "train", config.on_bad_row)
    # In the order of a run's pool, which is that of ties.
    prompts = sorted(encoder.within_limits(loaded, labels={}).kept, key=lambda prompt: prompt.id)
    require_some(prompts)
    if config.count > len(prompts):
        raise ConfigError(f"--count is {config.count} and {config.data} has {len(prompts)} prompts; lower it")
    if config.answers == "candidates" and task.candidates is None:
        raise ConfigError(f"--answers is candidates, but task {task.name} has no closed answer set")
    tokens = encoder.prompts(prompts)
    targets = load_targets(encoder, task, config.acquisition.target_file)
    shapes = answer_shapes(encoder, tokens.lengths, config.batch_size)
    pool: Pool = generated_pool(encoder, tokens, shapes)
    if config.answers == "candidates":
        assert task.candidates is not None
        pool = candidate_pool(encoder, prompts, task.candidates, config.batch_size)
    refuse_large_batches(config, shape, pool)
    warn_of_length(pool, shape.max_position_embeddings)
    model = load_model(
        config.model,
        config.dtype,
        quantization=config.quantization,
        longest=config.max_prompt_tokens + config.max_response_tokens,
        ignored_fields=config.ignored_fields,
    )
    return Problem(
        model,
        encoder,
        prompts,
        tokens,
        pool,
        shapes,
        SimulatedOracle({}),
        read=task.parse,
        group=task.group,
        targets=targets,
    )


def _pick(
    config: SelectConfig, experiment: ExperimentConfig, strategy: Strategy, problem: Problem, progress: Progress
) -> Choice:
    """The choice that a run would make before its first training."""
    import jax

    from star_jax.acquisition.strategy import Query
    from star_jax.active.loop import init
    from star_jax.active.query import query_keys, score_and_pick
    from star_jax.tracking.observer import Timed
    from star_jax.tracking.timing import Stopwatch

    state = init(len(problem.prompts))
    keys = query_keys(jax.random.key(config.seed), state)
    timed = Timed(progress, Stopwatch(), strategy.name)
    query = Query(jax.numpy.asarray(0), 1, config.count)
    return score_and_pick(experiment, strategy, problem, state, keys, query, timed)
