"""What is judged beside the test set: labels that were held out, in batches that the run has programs for already."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from star_jax.acquisition.pools import BatchSizes, candidate_pool, choose_shapes, generated_pool
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.config import EvaluationConfig, ExperimentConfig, FormatConfig, ScoringConfig
from star_jax.data.loading import load_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.experiment import judging

ANSWERS = ("1", "2 3", "4")


@pytest.mark.parametrize("answers", ["candidates", "generated"])
def test_held_out_examples_have_the_shapes_of_the_pool(monkeypatch, answers):
    """Also short ones, whatever their number: it grows with the labels, round by round."""
    task, tokenizer = (
        get_task("generic", FormatConfig("{{ prompt }} ", answers=ANSWERS)),
        load_tokenizer("embedded:skills"),
    )
    rows = [{"id": f"q{i}", "prompt": " ".join("7" * (1 + i)), "response": ANSWERS[i % 3]} for i in range(8)]
    encoder = Encoder(tokenizer, task, Limits(9, 6))
    examples = load_examples(task, rows, "train", "error")
    prompts = [example.prompt for example in examples]
    tokens = encoder.prompts(prompts)
    shapes = choose_shapes(tokens.lengths, tokens.lengths, 15, BatchSizes(4, 4))
    pools = {
        "candidates": candidate_pool(encoder, prompts, task.candidates, 4),
        "generated": generated_pool(encoder, tokens, shapes),
    }
    config = ExperimentConfig(scoring=ScoringConfig(answers=answers), evaluation=EvaluationConfig(answers="auto"))
    progress = SimpleNamespace(task=lambda *arguments: nullcontext(lambda count: None))
    run = SimpleNamespace(
        context=SimpleNamespace(task=task, encoder=encoder, config=config, model=None, progress=progress),
        problem=SimpleNamespace(prompts=prompts, pool=pools[answers], shapes=shapes),
    )
    seen = []

    def evaluated(model, adapter, test, config, *, base, on_batch):
        seen.append(test)
        return {"accuracy": 1.0, "nll": 0.0}, []

    monkeypatch.setattr(judging, "evaluate", evaluated)
    for numbers in ([1, 0], [2, 5, 1]):
        judging.validate(run, None, [examples[number] for number in numbers], "round 0")
        asked, whole = seen[-1].prompts, pools[answers]
        assert asked.size == len(numbers)
        assert asked.shapes == whole.shapes
        group = len(whole.rows) // whole.size
        wanted = [whole.rows[number * group + one].tokens for number in numbers for one in range(group)]
        for row, tokens_of_row in zip(asked.rows, wanted, strict=True):
            np.testing.assert_array_equal(row.tokens, tokens_of_row)
