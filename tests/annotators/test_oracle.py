from pathlib import Path

import pytest

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request, collect
from star_jax.annotators.oracle import SimulatedOracle, gold_examples, oracle
from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import LabelsNeeded

EXAMPLES = [Example(Prompt(f"e{i}", f"question {i}"), f"answer {i}") for i in range(5)]
LABELS = {example.id: example.response for example in EXAMPLES}


def requests(*places):
    return [Request(EXAMPLES[place].prompt, rank) for rank, place in enumerate(places)]


def test_oracle_answers_what_it_is_asked_and_keeps_count():
    simulated = SimulatedOracle(LABELS)
    assert simulated.annotate(requests(3, 0)) == [Answer("e3", "answer 3"), Answer("e0", "answer 0")]
    assert simulated.asked == ["e3", "e0"]


def test_what_the_file_has_no_response_to_stays_open():
    simulated = SimulatedOracle({"e3": "answer 3"})
    assert simulated.annotate(requests(3, 0, 1)) == [Answer("e3", "answer 3")]
    assert simulated.asked == ["e3"]
    with pytest.raises(LabelsNeeded, match=r"^2 examples that were picked have no response in the pool, e0 among them"):
        collect(simulated, requests(3, 0, 1))


def test_the_oracle_of_a_run_has_the_pools_responses():
    made = oracle(AnnotatorContext(LABELS, LABELS.keys(), Path("nowhere"), get_task("gsm8k")))
    assert collect(made, requests(4)) == [Answer("e4", "answer 4")]


def test_gold_examples_are_no_labelling():
    assert gold_examples(LABELS, [EXAMPLES[2].prompt, EXAMPLES[1].prompt]) == [EXAMPLES[2], EXAMPLES[1]]
