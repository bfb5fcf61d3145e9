"""Tokens, masks and buckets, against loops over characters and over rows."""

import logging

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from star_jax.data.batching import (
    BUCKETS,
    NARROW,
    Batch,
    Encoder,
    Fitting,
    Limits,
    Row,
    grouped_batches,
    pack,
    prompt_batches,
    sequence_batches,
)
from star_jax.data.examples import DataError, Example, Prompt
from star_jax.data.tasks.task import Task

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


def task(append_eos: bool = True) -> Task:
    return Task("words", lambda row: "", lambda row: None, lambda text: text, append_eos=append_eos)


def encoder(tokenizer, *, prompt: int = 40, response: int = 20, append_eos: bool = True, too_long="error") -> Encoder:
    return Encoder(tokenizer, task(append_eos), Limits(prompt, response, too_long))


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


def test_a_token_that_reaches_into_the_response_belongs_to_it(pieces):
    """Every cut behind the first word, inside words and at spaces: the prompt keeps what lies in it entirely."""
    examples = [example(text[:cut], text[cut:]) for text in SENTENCES for cut in range(text.index(" "), len(text))]
    rows = encoder(pieces, prompt=99, response=99).examples(examples)
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


def test_text_leaves_special_tokens_out(words):
    (row,) = encoder(words).examples([example("is the", " whole sea")])
    assert encoder(words).text(row.tokens[row.prompt_length :]) == "whole sea"


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


def test_nothing_is_logged_where_everything_fits(words, caplog):
    fits = [example("is the", " sea")]
    with caplog.at_level(logging.WARNING):
        for too_long in ("error", "drop", "truncate-left"):
            one = encoder(words, too_long=too_long)
            assert fit(one, fits).kept == [fits[0].prompt]
            one.examples(fits)
    assert not caplog.records


# Batches

LIMITS = [Limits(40, 20), Limits(NARROW, 1), Limits(100, 30), Limits(128, 256), Limits(20, 200)]


def draw_rows(seed: int, count: int, limits: Limits) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt = limits.prompt if number == 0 else int(rng.integers(1, limits.prompt + 1))
        response = limits.response if number == 0 else int(rng.integers(1, limits.response + 1))
        rows.append(Row(rng.integers(1, 999, prompt + response).astype(np.int32), prompt))
    return rows


def check_row(batch: Batch, place: int, row: Row) -> None:
    length = len(row.tokens)
    assert batch.lengths[place] == length
    assert batch.prompt_lengths[place] == row.prompt_length
    np.testing.assert_array_equal(batch.tokens[place, :length], row.tokens)
    assert (batch.tokens[place, length:] == 0).all()


def check_filling(batch: Batch) -> None:
    """Rows that only fill up: masked, behind the real ones, with one prompt token and no response."""
    count = int(batch.row_mask.sum())
    assert batch.row_mask.tolist() == [True] * count + [False] * (len(batch.row_mask) - count)
    assert (batch.prompt_lengths[count:] == 1).all()
    assert (batch.lengths[count:] == 1).all()
    for array in (batch.tokens, batch.prompt_lengths, batch.lengths, batch.index):
        assert array.dtype == np.int32
        assert len(array) == len(batch.row_mask)


def smallest(rows: list[Row], buckets) -> tuple[int, int]:
    return min(
        bucket
        for bucket in buckets
        if all(len(row.tokens) <= bucket[0] and len(row.tokens) - row.prompt_length <= bucket[1] for row in rows)
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_buckets_hold_all_that_the_limits_allow(limits):
    buckets = limits.sequence_buckets()
    assert 1 <= len(buckets) <= BUCKETS
    assert buckets == tuple(sorted(set(buckets)))
    assert buckets[-1] == (limits.prompt + limits.response, limits.response)
    assert 1 <= len(limits.prompt_buckets()) <= BUCKETS
    assert limits.prompt_buckets()[-1] == limits.prompt
    if limits.prompt + limits.response <= NARROW:
        assert len(buckets) == 1


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_sequence_is_in_exactly_one_batch(limits, batch_size):
    rows = draw_rows(1, 60, limits)
    batches = list(sequence_batches(rows, limits, batch_size))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert len(batch.tokens) == batch_size
        for place in np.flatnonzero(batch.row_mask):
            row = rows[batch.index[place]]
            check_row(batch, place, row)
            assert (batch.tokens.shape[1], batch.width) == smallest([row], limits.sequence_buckets())
        seen += batch.index[batch.row_mask].tolist()
    assert sorted(seen) == list(range(60))
    shapes = [(batch.tokens.shape[1], batch.width) for batch in batches]
    assert len(set(shapes)) <= BUCKETS
    assert shapes == sorted(shapes)  # One program after another, not back and forth.
    for shape in set(shapes):
        mine = [batch for batch in batches if (batch.tokens.shape[1], batch.width) == shape]
        order = np.concatenate([batch.index[batch.row_mask] for batch in mine])
        assert (np.diff(order) > 0).all()
        assert all(batch.row_mask.all() for batch in mine[:-1])  # Only the last one is filled up.


@pytest.mark.parametrize("limits", LIMITS)
def test_every_prompt_is_in_exactly_one_batch(limits):
    prompts = [row.tokens[: row.prompt_length] for row in draw_rows(2, 40, limits)]
    batches = list(prompt_batches(prompts, limits, 6))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert batch.width == 0
        for place in np.flatnonzero(batch.row_mask):
            prompt = prompts[batch.index[place]]
            check_row(batch, place, Row(prompt, len(prompt)))
            width = min(edge for edge in limits.prompt_buckets() if edge >= len(prompt))
            assert batch.tokens.shape == (6, width)
        seen += batch.index[batch.row_mask].tolist()
    assert sorted(seen) == list(range(40))
    assert len({batch.tokens.shape for batch in batches}) <= BUCKETS


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("group", "groups_a_batch"), [(1, 4), (3, 4), (4, 1)])
def test_groups_stay_together(limits, group, groups_a_batch):
    groups = 15
    rows = draw_rows(3, groups * group, limits)
    batches = list(grouped_batches(rows, group, limits, groups_a_batch))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert len(batch.tokens) == groups_a_batch * group
        real = int(batch.row_mask.sum())
        assert real % group == 0
        for start in range(0, real, group):
            (number,) = set(batch.index[start : start + group].tolist())
            members = rows[number * group : (number + 1) * group]
            for turn, row in enumerate(members):
                check_row(batch, start + turn, row)
            assert (batch.tokens.shape[1], batch.width) == smallest(members, limits.sequence_buckets())
            seen.append(number)
    assert sorted(seen) == list(range(groups))
    assert len({(batch.tokens.shape, batch.width) for batch in batches}) <= BUCKETS


@pytest.mark.parametrize("limits", LIMITS)
def test_packed_rows_share_the_smallest_bucket_that_holds_them(limits):
    rows = draw_rows(4, 30, limits)
    for start in range(0, 30, 3):
        chosen = rows[start : start + 3]
        batch = pack(chosen, [7, 3, 5], limits, 5)
        check_filling(batch)
        assert batch.row_mask.tolist() == [True] * 3 + [False] * 2
        assert batch.index[:3].tolist() == [7, 3, 5]
        assert (batch.tokens.shape[1], batch.width) == smallest(chosen, limits.sequence_buckets())
        for place, row in enumerate(chosen):
            check_row(batch, place, row)


def test_a_row_over_the_limits_fits_no_bucket():
    with pytest.raises(ValueError, match="a row of 9 tokens, 4 of them response, fits no bucket"):
        list(sequence_batches([Row(np.ones(9, np.int32), 5)], Limits(6, 3), 2))


def test_no_rows_make_no_batch():
    assert list(sequence_batches([], Limits(6, 3), 2)) == []
    assert list(prompt_batches([], Limits(6, 3), 2)) == []
    assert list(grouped_batches([], 3, Limits(6, 3), 2)) == []
