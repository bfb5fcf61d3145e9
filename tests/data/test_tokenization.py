"""Text to tokens: where a response begins and ends, and what the limits do, against loops over characters."""

import dataclasses
import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Fitting, Limits
from star_jax.errors import DataError

SENTENCES = [
    "the answer is yes",
    "the answer is no, and the question is old",
    "can a fish swim in the sea? yes, a fish can",
    "is the sea blue? no, not the whole sea",
]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token a word, and `<s>` in front, as Llama's tokenizers have it."""
    names = ["<s>", "</s>", "<unk>", *sorted({word for text in SENTENCES for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def pieces() -> PreTrainedTokenizerFast:
    """Byte-level BPE, whose tokens begin with the space in front of a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.fixture(scope="module")
def ending(words) -> PreTrainedTokenizerFast:
    """The words again, with `</s>` behind every text, as a tokenizer with `add_eos_token` has it."""
    tokenizer = Tokenizer.from_str(words.backend_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def task(append_eos: bool = True, joint: bool = False) -> Task:
    return Task("words", lambda row: "", lambda row: None, str, append_eos=append_eos, joint_tokens=joint)


def encoder(
    tokenizer, *, prompt: int = 40, response: int = 20, append_eos: bool = True, too_long="error", joint: bool = False
) -> Encoder:
    return Encoder(tokenizer, task(append_eos, joint), Limits(prompt, response, too_long))


def example(prompt: str, response: str, name: str = "e1") -> Example:
    return Example(Prompt(name, prompt), response)


def fit(one: Encoder, examples: list[Example]) -> Fitting:
    return one.within_limits([e.prompt for e in examples], {e.id: e.response for e in examples})


# Tokens


def test_prompt_keeps_its_first_token_and_the_response_gets_its_last(words):
    (row,) = encoder(words).examples([example("can a fish swim?", " yes, a fish can")])
    names = words.convert_ids_to_tokens(row.tokens.tolist())
    assert names == ["<s>", "can", "a", "fish", "<unk>", "yes,", "a", "fish", "can", "</s>"]
    assert row.prompt_length == 5
    assert row.tokens.dtype == np.int32
    (prompt,) = encoder(words).prompts([Prompt("e1", "can a fish swim?")])
    np.testing.assert_array_equal(prompt, row.tokens[:5])
    assert prompt.dtype == np.int32


def test_end_of_sequence_only_where_the_task_wants_it(words):
    one, other = (encoder(words, append_eos=flag).examples([example("is the", " sea")])[0] for flag in (True, False))
    np.testing.assert_array_equal(one.tokens, [*other.tokens, words.eos_token_id])
    assert one.prompt_length == other.prompt_length == 3


def test_in_joint_tokens_one_that_reaches_into_the_response_belongs_to_it(pieces):
    """Every cut behind the first word, inside words and at spaces: the prompt keeps what lies in it entirely."""
    examples = [example(text[:cut], text[cut:]) for text in SENTENCES for cut in range(text.index(" "), len(text))]
    rows = encoder(pieces, prompt=99, response=99, joint=True).examples(examples)
    crossing = 0
    for one, row in zip(examples, rows, strict=True):
        whole = pieces.backend_tokenizer.encode(one.prompt.text + one.response)
        owner = np.full(len(one.prompt.text + one.response), -1)
        for number, (start, stop) in enumerate(whole.offsets):
            owner[start:stop] = number
        inside, outside = (set(part.tolist()) for part in np.split(owner, [len(one.prompt.text)]))
        crossing += len(inside & outside)
        np.testing.assert_array_equal(row.tokens, [*whole.ids, pieces.eos_token_id])
        assert row.prompt_length == len(inside - outside)
        assert pieces.decode(row.tokens[: row.prompt_length]) == "".join(
            (one.prompt.text + one.response)[slice(*whole.offsets[number])] for number in range(row.prompt_length)
        )
    assert crossing > 20


def test_a_tokenizer_that_ends_every_text_itself_ends_no_prompt_and_a_response_once(words, ending):
    examples = [example("can a fish swim?", " yes, a fish can"), example("is the", " sea", "e2")]
    prompts = [one.prompt for one in examples]
    assert ending("is the")["input_ids"][-1] == ending.eos_token_id
    for append_eos in (True, False):
        plain, same = (encoder(one, append_eos=append_eos) for one in (words, ending))
        for want, got in zip(plain.examples(examples), same.examples(examples), strict=True):
            np.testing.assert_array_equal(got.tokens, want.tokens)
            assert got.prompt_length == want.prompt_length
            assert got.tokens.tolist().count(ending.eos_token_id) == append_eos
        for want, got in zip(plain.prompts(prompts), same.prompts(prompts), strict=True):
            np.testing.assert_array_equal(got, want)
    exact = encoder(ending, prompt=5, response=5)
    assert fit(exact, examples) == Fitting(prompts, 0, 0, 0)


def test_an_end_that_the_text_spells_itself_is_not_doubled(words, ending):
    for tokenizer in (words, ending):
        (row,) = encoder(tokenizer).examples([example("is the", " sea </s>")])
        assert tokenizer.convert_ids_to_tokens(row.tokens.tolist()) == ["<s>", "is", "the", "sea", "</s>"]


def test_tokens_that_the_model_does_not_have_are_named(words):
    size = words.convert_tokens_to_ids("whole")
    small = Encoder(words, task(), Limits(40, 20), vocab_size=size)
    said = rf"example e2: the tokenizer's token 'whole' has the number {size} and the model's vocab_size is {size}; use"
    fits = example("can a", " fish", "e1")
    for bad in (example("the whole", " fish", "e2"), example("the", " whole", "e2")):
        with pytest.raises(DataError, match=said):
            small.examples([fits, bad])
        with pytest.raises(DataError, match=said):
            fit(small, [fits, bad])
    with pytest.raises(DataError, match=said):
        small.prompts([fits.prompt, Prompt("e2", "the whole")])
    assert len(Encoder(words, task(), Limits(40, 20), vocab_size=size + 1).examples([example("the", " whole")])) == 1
    with pytest.raises(DataError, match=r"the end of a response: the tokenizer's token '</s>' has the number 1"):
        Encoder(words, task(), Limits(40, 20), vocab_size=1)


def test_text_leaves_special_tokens_out(words):
    (row,) = encoder(words).examples([example("is the", " whole sea")])
    assert encoder(words).text(row.tokens[row.prompt_length :]) == "whole sea"


def test_a_response_may_end_in_any_of_several_tokens(words):
    sea, end = words.convert_tokens_to_ids("sea"), words.eos_token_id
    several = Encoder(words, task(), Limits(40, 20), end_ids=[sea, end])
    assert (several.eos_id, several.end_ids) == (end, tuple(sorted((sea, end))))
    assert encoder(words).end_ids == (end,)
    of_task = dataclasses.replace(task(), end_id=sea)
    assert Encoder(words, of_task, Limits(40, 20), end_ids=(0,)).end_ids == tuple(sorted((0, sea, end)))
    tokens = words("the sea sea", add_special_tokens=False)["input_ids"]
    assert several.text(np.array(tokens)) == "the sea"
    assert several.text(np.array(tokens[:1])) == "the"
    assert several.text(np.array([], np.int32)) == ""


def test_nothing_gives_nothing(words):
    assert encoder(words).prompts([]) == []
    assert encoder(words).examples([]) == []
    assert encoder(words).within_limits([], {}) == Fitting([], 0, 0, 0)


def test_empty_texts_are_named(words, pieces):
    with pytest.raises(DataError, match=r"example e7: the response is empty; give it a text or leave the row out"):
        encoder(words, append_eos=False).examples([example("is the", " ", "e7")])
    with pytest.raises(DataError, match=r"example e8: the prompt has no tokens; give it a text or leave the row out"):
        encoder(pieces).prompts([Prompt("e8", "")])
    with pytest.raises(DataError, match=r"example e9: the prompt has no tokens"):
        encoder(pieces).examples([example("", "yes", "e9")])
    for too_long in ("error", "drop", "truncate-left"):
        with pytest.raises(DataError, match=r"example e9: the prompt has no tokens"):
            encoder(pieces, too_long=too_long).within_limits([Prompt("e9", "")], {})


# Limits


def test_too_long_is_an_error_that_says_what_to_do(words):
    long = example("is the sea blue?", " no, not the whole sea", "e3")  # 5 and 6 tokens with <s> and </s>
    fits = example("is the", " sea", "e4")
    prompt, response = "raise max_prompt_tokens", "raise max_response_tokens"
    advice = "or set too_long to drop or truncate-left"
    with pytest.raises(DataError, match=rf"e3: the prompt has 5 tokens, over the limit of 4; {prompt}, {advice}"):
        encoder(words, prompt=4).examples([fits, long])
    for call in (Encoder.prompts, lambda one, prompts: one.within_limits(prompts, {})):
        with pytest.raises(DataError, match=r"e3: the prompt has 5 tokens, over the limit of 4"):
            call(encoder(words, prompt=4), [fits.prompt, long.prompt])
    with pytest.raises(DataError, match=rf"e3: the response has 6 tokens, over the limit of 5; {response}, {advice}"):
        fit(encoder(words, response=5), [fits, long])
    assert encoder(words, response=5).within_limits([long.prompt], {}) == Fitting([long.prompt], 0, 0, 0)
    exact = encoder(words, prompt=5, response=6)
    assert fit(exact, [fits, long]) == Fitting([fits.prompt, long.prompt], 0, 0, 0)
    assert len(exact.examples([long])[0].tokens) == 11


def test_all_that_are_too_long_are_counted_in_one_sentence(words):
    """The first few by name; those within the limit are not among them."""
    texts = ["is", "is the sea blue?", *["is the sea"] * 6]
    examples = [example(text, " no, not the whole sea", f"e{number}") for number, text in enumerate(texts)]
    named = r"e1 with 5, e2 with 4, e3 with 4, e4 with 4, e5 with 4 and 2 more"
    sentence = rf"^7 of 8 prompts are over the limit of 3 tokens \({named}\), the longest has 5; raise max_prompt"
    short = encoder(words, prompt=3)
    for call in (short.prompts, lambda prompts: short.within_limits(prompts, {})):
        with pytest.raises(DataError, match=sentence):
            call([one.prompt for one in examples])
    sentence = r"^2 of 2 responses are over the limit of 5 tokens \(e0 with 6, e1 with 6\), the longest has 6; raise"
    with pytest.raises(DataError, match=sentence):
        fit(encoder(words, response=5), examples[:2])


def test_truncation_cuts_prompts_on_the_left_and_responses_on_the_right(words, caplog):
    long, other = example("is the sea blue?", " no, not the whole sea"), example("is", " no", "e2")
    short = encoder(words, prompt=3, response=4, too_long="truncate-left")
    with caplog.at_level(logging.WARNING):
        assert fit(short, [long, other]) == Fitting([long.prompt, other.prompt], 0, 1, 1)
    assert "1 of 2 prompts are over 3 tokens and are cut on the left" in caplog.text
    assert "1 of 2 responses are over 4 tokens and are cut on the right" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        (row,) = short.examples([long])
    assert "1 of 1 responses are over 4 tokens and are cut on the right" in caplog.text
    assert words.convert_ids_to_tokens(row.tokens.tolist()) == ["<s>", "sea", "blue?", "no,", "not", "the", "whole"]
    assert row.prompt_length == 3
    (prompt,) = short.prompts([long.prompt])
    np.testing.assert_array_equal(prompt, row.tokens[:3])


def test_a_joint_prompt_that_only_its_response_makes_too_long_is_cut_where_long_ones_are_dropped():
    """`xab` is one token, and `x`, `a`, `bc` are those of `xabc`. Leaving the prompt out would tell of the response."""
    parts = ["x", "a", "b", "c", "bc", "ab", "xab", "</s>"]
    merges = [("b", "c"), ("a", "b"), ("x", "ab")]
    model = models.BPE({part: number for number, part in enumerate(parts)}, merges)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>")
    one = example("xab", "c")
    (whole,) = encoder(tokenizer, joint=True).examples([one])
    assert (tokenizer.convert_ids_to_tokens(whole.tokens), whole.prompt_length) == (["x", "a", "bc", "</s>"], 2)
    dropping = encoder(tokenizer, prompt=1, too_long="drop", joint=True)
    assert fit(dropping, [one]) == Fitting([one.prompt], 0, 0, 0)
    (cut,) = dropping.examples([one])
    assert (tokenizer.convert_ids_to_tokens(cut.tokens), cut.prompt_length) == (["a", "bc", "</s>"], 1)
    with pytest.raises(DataError, match="over the limit of 1"):
        encoder(tokenizer, prompt=1, joint=True).examples([one])
    (asked,) = encoder(tokenizer).examples([one])
    assert (tokenizer.convert_ids_to_tokens(asked.tokens), asked.prompt_length) == (["xab", "c", "</s>"], 1)


def test_dropping_leaves_out_long_prompts_and_never_looks_at_responses(words, caplog):
    examples = [
        example("is the sea", " no", "e1"),
        example("is the sea blue?", " no, not the whole sea", "e2"),
        example("is it", " no, not the whole sea", "e3"),
    ]
    dropping = encoder(words, prompt=4, response=3, too_long="drop")
    with caplog.at_level(logging.WARNING):
        fitting = fit(dropping, examples)
    kept = [examples[0], examples[2]]
    assert fitting == Fitting([one.prompt for one in kept], 1, 0, 1)
    assert "1 of 3 prompts are over 4 tokens and are left out" in caplog.text
    rows = dropping.examples(kept)
    assert words.convert_ids_to_tokens(rows[1].tokens.tolist()) == ["<s>", "is", "<unk>", "no,", "not", "the"]
    with pytest.raises(DataError, match=r"e2: the prompt has 5 tokens"):
        dropping.prompts([examples[1].prompt])


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate-left"])
def test_prompts_are_fitted_whatever_is_known_of_their_responses(words, caplog, too_long):
    """Labels of one prompt in two: those decide neither what is kept nor what is counted of prompts."""
    limit = 20 if too_long == "error" else 4
    one = encoder(words, prompt=limit, response=3 if too_long != "error" else 20, too_long=too_long)
    prompts = [Prompt(f"p{i}", "is the sea blue? yes"[: 6 + 2 * i]) for i in range(8)]
    labels = {prompt.id: " no, not the whole sea" for prompt in prompts[::2]}
    bare, known = one.within_limits(prompts, {}), one.within_limits(prompts, labels)
    assert bare[:3] == known[:3]
    lengths = [len(words(prompt.text)["input_ids"]) for prompt in prompts]
    over = sum(length > limit for length in lengths)
    assert bare.prompts_left_out == (over if too_long == "drop" else 0)
    assert bare.prompts_cut == (over if too_long == "truncate-left" else 0)
    assert len(bare.kept) == len(prompts) - bare.prompts_left_out
    assert bare.responses_cut == 0
    assert known.responses_cut == (0 if too_long == "error" else sum(p.id in labels for p in known.kept))


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate-left"])
def test_an_answer_of_a_closed_set_is_never_cut(words, too_long):
    """These two would be one and the same after four tokens."""
    answers = (" no, not the sea", " no, not the whole sea")
    prompts = [Prompt("p1", "is the sea blue?"), Prompt("p2", "is it")]
    short = encoder(words, response=5, too_long=too_long)
    said = (
        r"the answer ' no, not the whole sea' has 6 tokens after the prompt of example p1, over the limit of 5; raise "
    )
    with pytest.raises(DataError, match=said + r"data\.max_response_tokens"):
        short.candidates(prompts, answers)
    fits = encoder(words, response=6, too_long=too_long)
    want = fits.examples([Example(prompt, answer) for prompt in prompts for answer in answers])
    for got, row in zip(fits.candidates(prompts, answers), want, strict=True):
        np.testing.assert_array_equal(got.tokens, row.tokens)
        assert got.prompt_length == row.prompt_length


def test_nothing_is_logged_where_everything_fits(words, caplog):
    fits = [example("is the", " sea")]
    with caplog.at_level(logging.WARNING):
        for too_long in ("error", "drop", "truncate-left"):
            one = encoder(words, too_long=too_long)
            assert fit(one, fits).kept == [fits[0].prompt]
            one.examples(fits)
    assert not caplog.records
