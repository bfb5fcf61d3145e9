"""The tasks: prompts and responses of both layouts, parsers, correctness, token boundaries."""

from decimal import Decimal

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.data.tasks.boolq import BOOLQ, BOOLQ_PASSAGE
from star_jax.data.tasks.gsm8k import GSM8K
from star_jax.data.tasks.openbookqa import OPENBOOKQA
from star_jax.data.tasks.released import RELEASED
from star_jax.errors import ConfigError, DataError
from star_jax.registry import TASKS

GSM8K_ROW = {
    "question": "Tom packs 48 pens, half of them on Monday. How many are left?",
    "answer": "On Monday he packs 48/2 = <<48/2=24>>24 pens.\nSo 48-24 = <<48-24=24>>24 are left.\n#### 24",
}
BOOLQ_RELEASED = {
    "question": "Please answer the following question with true or false, question: can fish fly in water?"
    "\n\nAnswer format: true/false",
    "answer": "the correct answer is false",
}
BOOLQ_HUB = {"question": "can fish fly in water", "answer": False}
PASSAGE = "Some fish glide over the water.\n"
OBQA_RELEASED = {
    "question": "A lamp gives\nAnswerA light\nAnswerB water\nAnswerC sound\nAnswerD B flat\nThe correct answer is ",
    "answer": "A",
}
OBQA_HUB = {
    "id": "7-980",
    "question_stem": "A lamp gives",
    "choices": {"text": ["light", "water", "sound", "B flat"], "label": ["A", "B", "C", "D"]},
    "answerKey": "A",
}
ROWS = [
    (GSM8K, GSM8K_ROW),
    (BOOLQ, BOOLQ_RELEASED),
    (BOOLQ, BOOLQ_HUB),
    (BOOLQ, BOOLQ_HUB | {"passage": PASSAGE}),
    (OPENBOOKQA, OBQA_RELEASED),
    (OPENBOOKQA, OBQA_HUB),
]


def test_registry_finds_each_task_by_its_name():
    assert TASKS.names() == ["gsm8k", "boolq", "boolq_passage", "openbookqa", "skills", "released", "generic"]
    assert all(get_task(name).name == name for name in TASKS.names())
    said = r"data\.task names obqa, which does not exist; choose from gsm8k, boolq, boolq_passage, openbookqa, skills, "
    with pytest.raises(ConfigError, match=said):
        get_task("obqa")


# Prompts and responses


def test_gsm8k_prompt_and_response():
    assert GSM8K.prompt(GSM8K_ROW) == (
        "Tom packs 48 pens, half of them on Monday. How many are left?"
        "\nAnswer the above question. First think step by step and then answer the final number.\n"
    )
    assert GSM8K.response(GSM8K_ROW) == (
        "On Monday he packs 48/2 = <<48/2=24>>24 pens.\nSo 48-24 = <<48-24=24>>24 are left.\nThe final answer is 24"
    )


def test_boolq_layouts_agree():
    assert BOOLQ.prompt(BOOLQ_HUB) == BOOLQ.prompt(BOOLQ_RELEASED) == BOOLQ_RELEASED["question"] + "\n"
    assert BOOLQ.response(BOOLQ_HUB) == BOOLQ.response(BOOLQ_RELEASED) == "the correct answer is false"
    assert BOOLQ.response({"answer": True}) == "the correct answer is true"


@pytest.mark.parametrize("question", ["can fish fly in water?", "can fish fly in water ?", " can fish fly in water\n"])
def test_boolq_wraps_a_bare_question_with_one_question_mark(question):
    assert BOOLQ.prompt({"question": question}) == BOOLQ.prompt(BOOLQ_RELEASED)


def test_boolq_passage_stands_before_the_question():
    row = BOOLQ_HUB | {"passage": PASSAGE}
    assert BOOLQ.prompt(row) == BOOLQ.prompt(BOOLQ_HUB)
    assert BOOLQ_PASSAGE.prompt(row) == "Passage: Some fish glide over the water.\n\n" + BOOLQ.prompt(BOOLQ_HUB)
    with pytest.raises(DataError, match="field 'passage' is empty"):
        BOOLQ_PASSAGE.prompt(BOOLQ_HUB | {"passage": "  "})


@pytest.mark.parametrize(("answer", "expected"), [("True", "true"), ("false", "false"), (" FALSE ", "false")])
def test_boolq_answers_of_a_csv_file_are_texts(answer, expected):
    assert BOOLQ.response({"answer": answer}) == f"the correct answer is {expected}"


def test_boolq_groups_by_the_first_word_of_the_question():
    def group(question, **fields):
        return BOOLQ.group(Prompt("x", BOOLQ.prompt({"question": question, **fields})))

    assert group("can fish fly in water") == "can"
    assert group("Can fish fly in water", passage="question: is it") == "can"
    assert group("island fish can fly") == "other"
    assert BOOLQ.group(Prompt("x", BOOLQ.prompt(BOOLQ_RELEASED))) == "can"


def test_openbookqa_layouts_agree():
    colons = OBQA_RELEASED["question"]
    for letter in "ABCD":
        colons = colons.replace(f"Answer{letter} ", f"Answer{letter}: ")
    expected = "A lamp gives\nAnswerA light\nAnswerB water\nAnswerC sound\nAnswerD B flat\nThe correct answer is"
    for row in (OBQA_RELEASED, OBQA_RELEASED | {"question": colons}, OBQA_HUB):
        assert OPENBOOKQA.prompt(row) == expected
        assert OPENBOOKQA.response(row) == " A"


def test_openbookqa_pairs_choices_by_label_and_adds_a_missing_cue():
    shuffled = {"text": ["sound", "light", "B flat", "water"], "label": ["C", "A", "D", "B"]}
    assert OPENBOOKQA.prompt(OBQA_HUB | {"choices": shuffled}) == OPENBOOKQA.prompt(OBQA_HUB)
    assert OPENBOOKQA.prompt({"question": OBQA_RELEASED["question"][: -len("The correct answer is ")]}) == (
        OPENBOOKQA.prompt(OBQA_RELEASED)
    )


def test_released_changes_nothing_but_the_final_mark():
    suffix = "\nAnswer the above question. First think step by step and then answer the final number.\n"
    for row in (GSM8K_ROW, BOOLQ_RELEASED, OBQA_RELEASED):
        assert RELEASED.prompt(row) == row["question"] + suffix
        assert RELEASED.response(row) == row["answer"].replace("####", "The final answer is")
    assert not RELEASED.append_eos
    assert RELEASED.is_correct(" A\n", "A")
    assert not RELEASED.is_correct("", "")


@pytest.mark.parametrize(("task", "row"), ROWS)
def test_a_response_is_right_by_its_own_parser_and_is_a_candidate(task, row):
    response = task.response(row)
    assert task.is_correct(response, response)
    assert task.candidates is None or response in task.candidates


@pytest.mark.parametrize("task", [BOOLQ, OPENBOOKQA])
def test_candidates_are_read_as_different_answers(task):
    answers = [task.parse(candidate) for candidate in task.candidates]
    assert None not in answers
    assert len(set(answers)) == len(task.candidates)


@pytest.mark.parametrize(("task", "row"), ROWS)
def test_a_row_without_a_label_has_a_prompt_and_no_response(task, row):
    unlabelled = {name: value for name, value in row.items() if name not in ("answer", "answerKey")}
    assert task.prompt(unlabelled) == task.prompt(row)
    assert task.response(unlabelled) is None


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (GSM8K, {"answer": "#### 1"}, "field 'question' is missing \\(the row has answer\\)"),
        (GSM8K, {}, "field 'question' is missing \\(the row has no fields\\)"),
        (GSM8K, {"question": " \n"}, "field 'question' is empty"),
        (GSM8K, {"question": ["How many?"]}, "field 'question' is \\['How many\\?'\\]; it must be a string"),
        (GSM8K, {"question": "How \ud83d?"}, "field 'question' holds an unpaired surrogate"),
        (BOOLQ_PASSAGE, {"question": "is it", "passage": 3}, "field 'passage' is 3; it must be a string"),
        (OPENBOOKQA, {"question_stem": ""} | {"choices": OBQA_HUB["choices"]}, "field 'question_stem' is empty"),
        (OPENBOOKQA, {"question_stem": "A lamp"}, "field 'choices' is None; expected an object with lists"),
        (OPENBOOKQA, OBQA_HUB | {"choices": {"text": ["a"], "label": ["A"]}}, "four texts labelled A, B, C, D"),
        (OPENBOOKQA, OBQA_HUB | {"choices": {"text": "abcd", "label": "ABCD"}}, "field 'choices' is"),
        (OPENBOOKQA, OBQA_HUB | {"choices": {"text": ["a", "b", "c", " "], "label": [*"ABCD"]}}, "field 'choices' is"),
        (OPENBOOKQA, OBQA_HUB | {"choices": {"text": [*"abcd"], "label": [*"1234"]}}, "field 'choices' is"),
        (OPENBOOKQA, OBQA_HUB | {"choices": {"text": [*"abc"], "label": [*"ABCD"]}}, "field 'choices' is"),
    ],
)
def test_prompts_name_the_field_that_is_wrong(task, row, message):
    with pytest.raises(DataError, match=message):
        task.prompt(row)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (GSM8K, {"answer": 24}, "field 'answer' is 24; it must be a string"),
        (GSM8K, {"answer": "none of them"}, "field 'answer' is 'none of them'; expected a solution"),
        (BOOLQ, {"answer": 1}, "field 'answer' is 1; it must be a string"),
        (BOOLQ, {"answer": "maybe"}, "field 'answer' is 'maybe'; expected true, false"),
        (OPENBOOKQA, {"answer": "E"}, "field 'answer' is 'E'; expected one of the letters"),
        (OPENBOOKQA, OBQA_HUB | {"answerKey": "?" * 90}, "field 'answerKey' is '\\?+\\.\\.\\.; expected one"),
    ],
)
def test_responses_name_the_field_that_is_wrong(task, row, message):
    with pytest.raises(DataError, match=message):
        task.response(row)


# Parsers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The final answer is 18", "18"),
        ("The final answer is $18.00.", "18"),
        ("the final answer is: 1,234,567.50 dollars", "1234567.5"),
        ("#### -7", "-7"),
        ("####-$1,000", "-1000"),
        ("The final answer is $-7", "-7"),
        ("The final answer is -\\$7", "-7"),
        ("The final answer is \u22127", "-7"),
        ("The final answer is **42**", "42"),
        ("The final answer is .50", "0.5"),
        ("The final answer is 0.50", "0.5"),
        ("The final answer is 007", "7"),
        ("The final answer is -0.0", "0"),
        ("The final answer is 20%", "20"),
        ("The final answer is:\n18\n20", "18"),
        ("so the final answer is\n18\n20", "18"),
        # Without the phrase: the last number, and a minus that takes away is no sign.
        ("48/2 = <<48/2=24>>24 clips", "24"),
        ("so 20-5", "5"),
        ("(20)-5", "5"),
        ("it is 5 below: -5", "-5"),
        ("pages 3, 4 and 12.", "12"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("1,0000", "0"),
        ("", None),
        ("no number at all", None),
        # With the phrase, no other number will do.
        ("She has 3 apples.\nThe final answer is unknown", None),
        # A solution may mention the final answer before giving it.
        ("so the final answer is 15 gallons * 8 = <<15*8=120>>120 pints\nThe final answer is 120", "120"),
        ("so the final answer is 15 * 8. The final answer is 120", "120"),
        # What a model writes after its answer belongs to no question.
        ("2+2=4\nThe final answer is 4\nTom has 9 pens.\nThe final answer is 9", "4"),
        ("2+2=4\n#### 4\nTom has 9 pens. 9", "4"),
    ],
)
def test_gsm8k_parser(text, expected):
    assert GSM8K.parse(text) == expected


@settings(deadline=None)  # a busy machine is no failure
@given(
    value=st.decimals(min_value=-(10**12), max_value=10**12, places=4),
    grouped=st.booleans(),
    currency=st.sampled_from(["", "$"]),
    ending=st.sampled_from(["", ".", " dollars", "!", "\nNext question: 5"]),
)
def test_gsm8k_parser_keeps_the_value_and_is_canonical(value, grouped, currency, ending):
    sign = "-" if value < 0 else ""
    written = f"{abs(value):,f}" if grouped else f"{abs(value):f}"
    parsed = GSM8K.parse(f"3 + 4 = 7\nThe final answer is {sign}{currency}{written}{ending}")
    assert Decimal(parsed) == value
    assert GSM8K.parse(parsed) == parsed
    assert GSM8K.is_correct(f"#### {value:f}", f"The final answer is {value.normalize():f}")


def test_gsm8k_numbers_too_long_for_a_float_stay_apart():
    assert GSM8K.parse("#### 9007199254740993") == "9007199254740993"
    assert not GSM8K.is_correct("#### 9007199254740993", "#### 9007199254740992")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the correct answer is true", "true"),
        ("the correct answer is false.", "false"),
        ("The Correct Answer Is: TRUE", "true"),
        ("true", "true"),
        ("False\n", "false"),
        ("It is true that fish swim, so the answer is false", "false"),
        ("the answer is\nfalse", "false"),
        ("the correct answer is true\nthe correct answer is false", "true"),
        ("Answer format: true/false. the correct answer is true", "true"),
        ("true or false? false", "false"),
        ("true/false", None),
        ("the correct answer is true/false", None),
        ("it may be true and it may be false", None),
        ("the answer is not true", None),
        ("It isn\u2019t true", None),
        ("that is not true, it is false", "false"),
        ("untrue", None),
        ("falsehoods", None),
        ("the correct answer is 1", None),
        ("the correct answer is yes", None),
        ("the answer is open.\nIt is true or it is false", None),
        ("", None),
    ],
)
def test_boolq_parser(text, expected):
    assert BOOLQ.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" B", "B"),
        ("B.", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("c) sound", "C"),
        ("D: B flat", "D"),
        ("B water", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("a\n", "A"),
        ("**C**", "C"),
        ('"C"', "C"),
        ("The correct answer is B", "B"),
        ("The correct answer is: (c).", "C"),
        ("The correct answer is A because a lamp gives light", "A"),
        ("Answer: D", "D"),
        ("AnswerC", "C"),
        ("AnswerB is wrong, so the answer is D", "D"),
        ("A lamp gives light and not sound, so the correct answer is C", "C"),
        ("A lamp gives light: option B", "B"),
        ("I choose (d) here", "D"),
        ("D\nThe question is over. E", "D"),
        ("The correct answer is a lamp", None),
        ("A lamp gives light", None),
        ("The correct answer is not B", None),
        ("either option A or option C", None),
        ("Because", None),
        ("C3 plants", None),
        ("A-frames", None),
        ("D's", None),
        ("E", None),
        ("2", None),
        ("", None),
    ],
)
def test_openbookqa_parser(text, expected):
    assert OPENBOOKQA.parse(text) == expected


@pytest.mark.parametrize(
    ("task", "prediction", "reference"),
    [
        # A number extractor over all tasks finds no number on either side here, and calls that equal.
        (BOOLQ, "the correct answer is true", "the correct answer is false"),
        (BOOLQ, "", "the correct answer is false"),
        (BOOLQ, "I do not know", "I do not know"),
        (OPENBOOKQA, " B", " C"),
        (OPENBOOKQA, "", " C"),
        (GSM8K, "The final answer is 24", "The final answer is 25"),
        (GSM8K, "no idea", "no number"),
    ],
)
def test_wrong_and_unreadable_predictions_are_wrong(task, prediction, reference):
    assert not task.is_correct(prediction, reference)


# Token boundaries


def _byte_level(corpus):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _trained(tokenizer, corpus, tokenizers.pre_tokenizers.ByteLevel.alphabet())


def _sentencepiece_like(corpus):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    # Like sentencepiece's models, this one has no merges over a line break: it is a byte of its own.
    return _trained(tokenizer, [line for text in corpus for line in text.split("\n")], ["\n"])


def _trained(tokenizer, corpus, alphabet):
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


@pytest.mark.parametrize("train", [_byte_level, _sentencepiece_like])
def test_a_prompts_tokens_begin_the_tokens_of_prompt_and_response(train):
    texts = [(task.prompt(row), task.response(row)) for task, row in ROWS]
    texts += [(task.prompt(row), candidate) for task, row in ROWS for candidate in task.candidates or ()]
    tokenizer = train([prompt + response for prompt, response in texts])
    for prompt, response in texts:
        alone, both = tokenizer.encode(prompt), tokenizer.encode(prompt + response)
        assert both.ids[: len(alone.ids)] == alone.ids
        ends = np.array([end for _, end in both.offsets])
        assert (ends > len(prompt)).sum() == len(both.ids) - len(alone.ids) > 0
