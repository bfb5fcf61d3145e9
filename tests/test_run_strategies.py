"""The experiment that runs every strategy: it names all there are, and its commands are understood."""

import json
import sys
from pathlib import Path

from star_jax.acquisition.settings import check_strategy_settings
from star_jax.acquisition.strategy import get_strategy
from star_jax.benchmarks.skills import generator
from star_jax.cli.run import parse_experiment
from star_jax.registry import STRATEGIES

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import run_strategies


def test_every_strategy_is_run_with_settings_that_it_takes(tmp_path):
    assert set(run_strategies.names()) == set(STRATEGIES.names()) - {"epig"}
    for name in run_strategies.names():
        _, _, _, *flags = run_strategies.command(tmp_path, "R0", "1,2,3", name, ["--loop.rounds", "3"])
        config = parse_experiment(flags)
        assert (config.data.regime, config.seeds, config.strategies) == ("R0", (1, 2, 3), (name,))
        check_strategy_settings(get_strategy(name, config.acquisition), config)


def test_targets_are_prompts_of_the_new_skills(tmp_path):
    run_strategies.write_targets(tmp_path / "targets.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "targets.jsonl").read_text().splitlines()]
    assert len(rows) == run_strategies.TARGETS_A_SKILL * len(run_strategies.NEW_SKILLS)
    assert all(set(row) == {"id", "question"} for row in rows)
    assert {row["question"].split()[0] for row in rows} <= set(run_strategies.NEW_SKILLS)
    assert not {row["question"] for row in rows} & {example.prompt.text for example in generator.test_examples()}
