"""A model is asked with the tokens that it is trained and scored on, whatever the task, and text comes back."""

import dataclasses
import logging
import unicodedata

import numpy as np
import pytest
from small_tokenizers import (
    ADDED,
    KINDS,
    LOSSLESS,
    bert,
    fast,
    gpt2,
    llama2,
    llama3,
    mistral,
    no_words,
    roberta,
    t5,
    words,
)
from tokenizers import normalizers

from star_jax.benchmarks.skills.generator import pool_examples
from star_jax.benchmarks.skills.generator import test_examples as skills_test_examples
from star_jax.benchmarks.skills.task import SKILLS
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.config import FormatConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.run_data import rows_fingerprint
from star_jax.data.spelling import Reader, loses_text
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import DataError
from star_jax.registry import TASKS

CHATML = (
    "{% for m in messages %}<tool>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<tool>assistant\n{% endif %}"
)
QUESTIONS = (
    "is the sea blue?",
    "Can a fish swim",
    "what is 12 plus 7",
    "na\u00efve caf\u00e9 \u4e2d\u6587",
    "x <both> ",
)
ANSWERS = ("yes", "19", "the answer is no", "\u00e9t\u00e9 \U0001f600", "<tool>yes", ": A", "<note> 1,234")
ROWS = {
    "gsm8k": [{"question": question, "answer": f"{answer}\n#### 7"} for question in QUESTIONS for answer in ANSWERS],
    "boolq": [{"question": question, "answer": answer} for question in QUESTIONS for answer in (True, False)],
    "boolq_passage": [{"question": one, "passage": two, "answer": True} for one in QUESTIONS for two in QUESTIONS],
    "openbookqa": [
        {"question_stem": one, "choices": {"text": [*QUESTIONS[:4]], "label": [*"ABCD"]}, "answerKey": letter}
        for one in QUESTIONS
        for letter in "ABCD"
    ],
    "skills": [{"question": "rev 3 1 4 =", "answer": "4 1 3"}, {"question": "lt 0 9 1 2 =", "answer": "T"}],
}
ENDS = [
    "\n\n",
    "\n",
    "",
    " ",
    "\t",
    ":",
    "\nA: ",
    "<tool>",
    "<tool> ",
    "<tool> \n",
    "<both>",
    "<both>\n ",
    "\n\n\n ",
    "1",
]
CHAT = FormatConfig(prompt="{{ q }}", response="{{ a }}", chat=True, system=None)


def cases(tokenizer):
    """Every shipped task but `released`, every end of a prompt, and a task in code whose prompt ends in a blank."""
    assert ROWS.keys() == set(TASKS.names()) - {"released", "generic"}
    for name, rows in ROWS.items():
        yield get_task(name), rows
    rows = [{"q": question, "a": answer} for question in QUESTIONS for answer in ANSWERS]
    for end in ENDS:
        yield get_task("generic", FormatConfig(prompt="{{ q }}" + end, response="{{ a }}")), rows
        column = [row | {"q": row["q"] + end} for row in rows]
        yield get_task("generic", FormatConfig(prompt="{{ q }}", response=" {{ a }}")), column
    yield get_task("generic", CHAT, tokenizer), rows
    closed = FormatConfig(prompt="{{ q }}\n\n", response="{{ a }}", answers=("yes", "no"), match="choice")
    yield get_task("generic", closed), [{"q": question, "a": "yes"} for question in QUESTIONS]
    yield Task("code", lambda row: f"{row['q']} is ", lambda row: row["a"], str), rows


@pytest.fixture(scope="module", params=KINDS, ids=lambda build: build.__name__)
def tokenizer(request):
    made = fast(request.param)
    made.chat_template = CHATML
    return made


def test_the_tokens_that_a_model_is_asked_with_begin_what_it_is_trained_and_scored_on(tokenizer):
    for task, rows in cases(tokenizer):
        encoder = Encoder(tokenizer, task, Limits(200, 200))
        prompts = [Prompt(str(number), task.prompt(row)) for number, row in enumerate(rows)]
        asked = encoder.prompts(prompts)
        spelled = encoder.examples([Example(one, task.response(row)) for one, row in zip(prompts, rows, strict=True)])
        for prompt, row in zip(asked, spelled, strict=True):
            np.testing.assert_array_equal(row.tokens[: row.prompt_length], prompt)
            assert len(row.tokens) > len(prompt) + 1
        if task.candidates is not None:
            for number, row in enumerate(encoder.candidates(prompts, task.candidates)):
                np.testing.assert_array_equal(row.tokens[: row.prompt_length], asked[number // len(task.candidates)])


def test_short_prompts_cut_on_the_left_are_the_same_with_a_response(tokenizer):
    task = Task("code", lambda row: row["q"], lambda row: row["a"], str)
    encoder = Encoder(tokenizer, task, Limits(4, 200, "truncate-left"))
    prompts = [Prompt(question, f"{question}\n\n") for question in QUESTIONS[:4]]
    rows = encoder.examples([Example(prompt, "yes") for prompt in prompts])
    for prompt, row in zip(encoder.prompts(prompts), rows, strict=True):
        np.testing.assert_array_equal(row.tokens[: row.prompt_length], prompt)


@pytest.mark.parametrize("build", LOSSLESS, ids=lambda build: build.__name__)
def test_prompt_and_response_read_as_they_are_written(build):
    """No added tokens here: those take blanks away, or add some, in ways of their own."""
    tokenizer = fast(build)
    texts = [text for text in (*QUESTIONS, *ENDS) if text and not any(str(token) in text for token in ADDED)]
    answers = [*(text for text in ANSWERS if "<" not in text), " yes", "\nno", "  two", "\u0301x", "234", "'s", "\t."]
    task = Task("code", lambda row: "", lambda row: None, str, append_eos=False)
    examples = [
        Example(Prompt(f"{one}{two}{three}", f"{one}{two}"), three)
        for one in texts
        for two in ENDS[:7]
        for three in answers
    ]
    examples = [one for one in examples if one.prompt.text.strip(" \t")]
    differing = 0
    for example, row in zip(examples, Encoder(tokenizer, task, Limits(99, 99)).examples(examples), strict=True):
        text, start = example.prompt.text, row.prompt_length
        blank = text[len(text.rstrip(" \t")) :] == " " and example.response.startswith(" ")
        wanted = whole = text.removesuffix(" " * blank) + example.response
        read = tokenizer.decode(row.tokens).removeprefix("<s>")
        if build in (llama2, mistral, roberta):  # these put a blank in front, some only where there is none
            read, wanted = read.lstrip(" "), wanted.lstrip(" ")
        assert unicodedata.normalize("NFC", read) == unicodedata.normalize("NFC", wanted)
        differing += row.tokens.tolist() != tokenizer(whole)["input_ids"]
        assert start < len(row.tokens)
    assert 0 < differing < len(examples)


@pytest.mark.parametrize("build", [gpt2, no_words], ids=lambda build: build.__name__)
def test_two_line_breaks_at_the_end_of_a_prompt_are_one_token_with_and_without_a_response(build):
    """The measured case: the tokens of both texts as one never begin with those of the prompt."""
    tokenizer = fast(build)
    prompts = [Prompt(str(number), f"Question {number}?\n\n") for number in range(50)]
    encoder = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    for prompt, asked, row in zip(
        prompts, encoder.prompts(prompts), encoder.examples([Example(one, "yes") for one in prompts]), strict=True
    ):
        if build is gpt2:
            assert tokenizer(prompt.text + "yes")["input_ids"][: len(asked)] != asked.tolist()
        np.testing.assert_array_equal(row.tokens[: row.prompt_length], asked)
        assert tokenizer.convert_ids_to_tokens(asked.tolist())[-1] == "\u010a\u010a"
        assert tokenizer.decode(row.tokens[row.prompt_length : -1]) == "yes"


def test_the_released_task_keeps_the_tokens_of_the_text_as_one(tokenizer):
    """Against a slow loop over characters: the prompt's tokens are those that end within it."""
    task = get_task("released")
    prompts = [Prompt(question, f"{question}\n\n") for question in QUESTIONS[:4]]
    examples = [Example(prompt, answer) for prompt in prompts for answer in ANSWERS[:3]]
    for example, row in zip(examples, Encoder(tokenizer, task, Limits(200, 200)).examples(examples), strict=True):
        whole = tokenizer(example.prompt.text + example.response, return_offsets_mapping=True)
        ids, offsets = whole["input_ids"], whole["offset_mapping"]
        if ids[-1] == tokenizer.eos_token_id:
            ids, offsets = ids[:-1], offsets[:-1]
        assert row.tokens.tolist() == ids
        assert row.prompt_length == sum(stop <= len(example.prompt.text) for _, stop in offsets)


@pytest.mark.parametrize(
    ("prompt", "response", "text"),
    [
        ("Answer: ", "yes", "Answer: yes"),
        ("Answer:  ", "yes", "Answer:  yes"),
        ("Answer:\t", " yes", "Answer:\t yes"),
        ("Answer: ", " yes", "Answer: yes"),
        ("Answer:\n  ", "  yes", "Answer:\n    yes"),
        ("Answer:", " yes", "Answer: yes"),
        ("Answer:\n", "yes", "Answer:\nyes"),
    ],
)
def test_blanks_at_the_end_of_a_prompt_are_the_responses(prompt, response, text):
    tokenizer = fast(llama3)
    encoder = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    one = Prompt("p", prompt)
    (row,), (asked,) = encoder.examples([Example(one, response)]), encoder.prompts([one])
    assert tokenizer.decode(row.tokens) == f"<s>{text}</s>"
    assert tokenizer.decode(asked) == "<s>" + prompt.rstrip(" \t")
    np.testing.assert_array_equal(row.tokens[: row.prompt_length], asked)
    for number, candidate in enumerate(encoder.candidates([one], ("yes", "no"))):
        blanks = prompt[len(prompt.rstrip(" \t")) :]
        said = tokenizer.decode(candidate.tokens[candidate.prompt_length : -1])
        assert said == blanks + ("yes", "no")[number]


def test_the_embedded_benchmark_has_the_tokens_it_always_had():
    encoders = [
        Encoder(load_tokenizer("embedded:skills"), task, Limits(20, 20))
        for task in (SKILLS, dataclasses.replace(SKILLS, joint_tokens=True))
    ]
    examples = [*skills_test_examples(), *pool_examples("R0", 0, 200), *pool_examples("R3", 1, 100)]
    ours, joint = (rows_fingerprint(encoder.examples(examples)) for encoder in encoders)
    assert ours == joint
    assert encoders[0].readings(examples) == [example.response for example in examples]


# Back to text


def _reader(tokenizer):
    return Reader(tokenizer, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])


@pytest.mark.parametrize(
    "text", ["<tool>yes</tool>", "a <note> b", "r\u00e9ponse", "\u4e2d\u6587 \u00df", "a , b . 's"]
)
@pytest.mark.parametrize("build", LOSSLESS, ids=lambda build: build.__name__)
def test_added_and_special_tokens_and_blanks_come_back(build, text):
    tokenizer = fast(build)
    tokenizer.add_tokens(["</tool>", "r\u00e9ponse", "\u4e2d\u6587", "\u00df"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    frame = [tokenizer.bos_token_id, *ids, tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    read = _reader(tokenizer).text(np.array(frame))
    if build in (roberta, llama2):  # these put blanks of their own beside added tokens
        assert read.replace(" ", "") == text.replace(" ", "")
    else:
        assert read.removeprefix(" ") == text
    assert _reader(tokenizer).text([]) == ""


@pytest.mark.parametrize(
    ("text", "reading", "lost"),
    [
        ("\ufb01ne x\u00b2", "fine x2", False),
        ("caf\u00e9", "cafe", False),
        ("a <both> b", "a<both>b", False),
        ("\u201cyes\u201d", '"yes"', False),
        ("yes \U0001f600", "yes", True),
        ("\u4e2d\u6587", "", True),
    ],
)
def test_what_a_tokenizer_loses(text, reading, lost):
    assert loses_text(text, reading) == lost
    assert not loses_text(text, text)


@pytest.mark.parametrize(
    ("build", "response", "reading"),
    [
        (t5, "\ufb01sh yes", "fish yes"),
        (bert, "Caf\u00e9", "cafe"),
        (gpt2, "yes <both> no", "yes<both>no"),
        (gpt2, "<tool>yes", "<tool>yes"),
        (llama2, " yes", "yes"),
        (words, "a fish </s>", "a fish"),
        (words, "<s> a fish", "a fish"),
        (words, "the \u4e2d", "the \u4e2d"),  # it has no token for the last word: nobody can write this response
    ],
)
def test_readings_are_what_the_model_can_write(build, response, reading):
    encoder = Encoder(fast(build), get_task("generic", FormatConfig()), Limits(99, 2, "truncate-left"))
    assert encoder.readings([Example(Prompt("p", "is the sea blue?\n"), response)]) == [reading]


def test_a_chat_turn_ends_in_a_token_that_was_added_without_being_special():
    tokenizer = fast(gpt2)
    tokenizer.chat_template = CHATML
    task = get_task("generic", CHAT, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in tokenizer.all_special_ids
    assert task.end_id == end
    encoder = Encoder(tokenizer, task, Limits(99, 99))
    (row,) = encoder.examples([Example(Prompt("p", task.prompt({"q": "Is it?"})), task.response({"a": "yes"}))])
    assert row.tokens[-1] == end
    assert end in encoder.end_ids
    assert encoder.text(row.tokens[row.prompt_length :]) == "yes"
    # Without the chat format the model may end its turn all the same.
    plain = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    assert plain.text(tokenizer("yes<|im_end|>")["input_ids"]) == "yes"


def test_a_response_that_no_token_spells_is_refused():
    tokenizer = fast(llama3)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u4e2d", "")
    encoder = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    said = r"example p: the model's tokenizer has no tokens for the response '\u4e2d'; write it otherwise or leave the"
    with pytest.raises(DataError, match=said):
        encoder.examples([Example(Prompt("p", "Q\n"), "\u4e2d")])


def test_responses_that_the_model_cannot_write_are_counted(caplog):
    """One that spells the end of a response in its midst, and one with letters that no token has."""
    tokenizer = fast(words)
    encoder = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    texts = {"a": "yes", "b": "a </s> fish", "c": "the question", "d": "the \u4e2d", "e": "a fish </s>"}
    prompts = [Prompt(name, "is the sea\n") for name in texts]
    with caplog.at_level(logging.WARNING):
        encoder.within_limits(prompts, texts)
    early, lost = (record.getMessage() for record in caplog.records)
    said = "1 of 5 responses hold a token that ends a response before their end, as example b does with 'a </s> fish'; "
    assert early == said + "the model will stop there"
    said = "1 of 5 responses have characters that the model's tokenizer does not know, as example d does with "
    assert lost == said + "'the \u4e2d'; no answer will equal them"


def test_an_end_that_is_also_called_unknown_is_no_loss(caplog):
    """As in GPT-2, whose one special token is all there is to begin, to end, and to stand for the unknown."""
    tokenizer = fast(gpt2)
    tokenizer.unk_token = tokenizer.eos_token
    encoder = Encoder(tokenizer, get_task("generic", FormatConfig()), Limits(99, 99))
    prompts = [Prompt("a", "is the sea\n"), Prompt("b", "is it\n")]
    with caplog.at_level(logging.WARNING):
        encoder.within_limits(prompts, {"a": "yes", "b": "no</s>"})
    assert not caplog.records
    assert encoder.readings([Example(prompts[1], "no</s>")]) == ["no"]
