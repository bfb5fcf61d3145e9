from star_jax.annotators.oracle import SimulatedOracle
from star_jax.data.examples import Example, Prompt

EXAMPLES = [Example(Prompt(f"e{i}", f"question {i}"), f"answer {i}") for i in range(5)]


def test_oracle_answers_what_it_is_asked_and_keeps_count():
    oracle = SimulatedOracle(EXAMPLES)
    asked = [EXAMPLES[3].prompt, EXAMPLES[0].prompt]
    assert oracle.label(asked) == [EXAMPLES[3], EXAMPLES[0]]
    assert oracle.asked == ["e3", "e0"]


def test_revealing_is_not_labelling():
    oracle = SimulatedOracle(EXAMPLES)
    assert [e.response for e in oracle.reveal([EXAMPLES[2].prompt])] == ["answer 2"]
    assert oracle.asked == []
