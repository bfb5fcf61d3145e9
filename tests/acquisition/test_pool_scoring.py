"""Scoring a pool: the order of the results, the three kinds of answers, and dropout's noise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import random_adapter, random_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from star_jax.acquisition import branched_scoring, pool_scoring
from star_jax.acquisition.pool_scoring import (
    PoolScores,
    Sampling,
    answer_texts,
    generated_texts,
    passes_over,
    score_pool,
)
from star_jax.acquisition.pools import (
    PROMPT_SHAPES,
    SEQUENCE_SHAPES,
    BatchSizes,
    candidate_pool,
    check_candidates,
    choose_shapes,
    generated_pool,
    proposed_pool,
)
from star_jax.acquisition.uncertainty import MEASURES, sequence_measures
from star_jax.data.batching import Shape, make_batch, sequence_batches
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Prompt
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits, TokenizedExample
from star_jax.errors import ConfigError, DataError
from star_jax.inference.mc_dropout import mc_score_responses, sample_keys
from star_jax.inference.scoring import score_responses
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import LanguageModel

WORDS = ["</s>", *"abcdefghijkl"]
CANDIDATES = (" a", " b c", " d e")
SIZE = 11
PROGRAMS = (
    pool_scoring._answer,
    pool_scoring._score_candidates,
    pool_scoring._score_proposed,
    branched_scoring._score_branched,
)
MODES = ("shared", "tied", "per_token")
SAMPLING = Sampling(3, 0.3, "tied")
SHAPES = Shapes((Shape(4, 3, 12), Shape(4, 8, 32)), (Shape(4, 7, 24), Shape(4, 12, 44)))
BATCH_SIZE = 4
SHAPE = TransformerConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return random_model(np.random.default_rng(0), SHAPE)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return random_adapter(np.random.default_rng(1), SHAPE, targets=("q_proj", "up_proj"), scale=1.0)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """One token a word; prompts of at most 8, responses of at most 4, end-of-sequence included."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    task = Task("words", lambda row: "", lambda row: None, lambda text: text)
    return Encoder(fast, task, Limits(prompt=8, response=4))


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Short and long ones in no order."""
    rng = np.random.default_rng(2)
    lengths = rng.permutation([3, 8] * 6)[:SIZE]
    return [Prompt(f"p{i}", " ".join(rng.choice(WORDS[1:], length))) for i, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def proposals(encoder, prompts) -> list[TokenizedExample]:
    rng = np.random.default_rng(3)
    answers = [rng.integers(1, len(WORDS), rng.integers(2, 4)).astype(np.int32) for _ in prompts]
    return followed_by(encoder, prompts, answers)


def followed_by(encoder, prompts, answers) -> list[TokenizedExample]:
    tokens = encoder.prompts(prompts)
    return [
        TokenizedExample(np.concatenate([one, answer]), len(one)) for one, answer in zip(tokens, answers, strict=True)
    ]


KINDS = ("generated", "candidates", "branched", "proposed")
SAMPLED = pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *((kind, "tied") for kind in KINDS),
        *((kind, mode) for kind in ("branched", "proposed") for mode in ("shared", "per_token")),
    ],
)
"""Every kind of pool and every kind of mask."""


@pytest.fixture(scope="module")
def build(encoder, prompts, proposals):
    """Makes the pool of a kind from the examples of the given numbers: batches of 4, in two shapes.

    Candidates have a row for each candidate, or branched ones a row for each prompt.
    """

    def make(kind: str, chosen=range(SIZE), shapes=SHAPES, batch_size=BATCH_SIZE):
        if kind == "generated":
            return generated_pool(encoder, encoder.prompts([prompts[i] for i in chosen]), shapes)
        if kind in ("candidates", "branched"):
            pool = candidate_pool(encoder, [prompts[i] for i in chosen], CANDIDATES, batch_size)
            return pool if kind == "branched" else pool._replace(branched=None)
        return proposed_pool([proposals[i] for i in chosen], shapes.sequences)

    return make


@pytest.fixture(scope="module")
def short(encoder, prompts) -> list[int]:
    """Numbers of the examples of one shape."""
    return [i for i, tokens in enumerate(encoder.prompts(prompts)) if len(tokens) == 3]


def assert_close(one: PoolScores, other: PoolScores, order=slice(None)) -> None:
    """`one` equals `other` taken in `order`."""
    assert set(one.measures) == set(other.measures) == set(MEASURES)
    for name, values in one.measures.items():
        want = other.measures[name][order]
        assert values.shape == want.shape
        np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5, err_msg=name)
    for left, right in ((one.responses, other.responses), (one.lengths, other.lengths)):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right[order])


# Order of the results


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_examples_have_permuted_scores(model, adapter, build, kind):
    order = np.random.default_rng(4).permutation(SIZE)
    pool = build(kind)
    assert len(list(pool.batches())) > len({batch.tokens.shape for batch in pool.batches()}) > 1
    places = np.concatenate([batch.index[batch.row_mask] for batch in pool.batches()])
    assert (np.diff(places) < 0).any()
    scores = score_pool(model, adapter, pool)
    assert all(values.shape == (SIZE,) for values in scores.measures.values())
    assert np.unique(scores.measures["sequence_nll"]).size == SIZE
    assert_close(score_pool(model, adapter, build(kind, order)), scores, order)


def test_proposed_scores_stand_in_the_order_of_the_rows(model, adapter, build, proposals):
    """Two shapes against one batch of all rows, where the order cannot be lost."""
    whole = make_batch(proposals, range(SIZE), [Shape(SIZE, 12, SIZE * 12)])
    inputs = SequenceInputs(whole.tokens, whole.prompt_lengths, whole.lengths)
    measures = sequence_measures(*jax.jit(score_responses)(model, adapter, inputs))
    scores = score_pool(model, adapter, build("proposed"))
    place = np.argsort(whole.index)
    assert_close(scores, PoolScores({name: values[place] for name, values in measures.items()}))
    np.testing.assert_array_equal(
        scores.measures["response_tokens"], [len(row.tokens) - row.prompt_length for row in proposals]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_progress_counts_every_example_once_a_pass(model, adapter, build, kind):
    """Answers are written first and then read by the samples: two passes."""
    pool = build(kind)
    for sampling, passes in ((None, 1), (SAMPLING, 2 if kind == "generated" else 1)):
        seen: list[int] = []
        score_pool(model, adapter, pool, key=jax.random.key(0), sampling=sampling, on_batch=seen.append)
        batched = pool.branched.whole if kind == "branched" else pool
        first = [len(set(batch.index[batch.row_mask].tolist())) for batch in batched.batches()]
        assert seen[: len(first)] == first
        assert (len(seen) > len(first)) == (passes > 1)  # answers fill batches of their own
        assert sum(seen) == passes_over(pool, sampling) * SIZE == passes * SIZE


@pytest.mark.parametrize("sampling", [None, SAMPLING])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_rows_that_are_named_are_scored(model, adapter, build, kind, sampling):
    """With the noise that they have in the whole pool, and no program more."""
    pool, chosen, seen = build(kind), np.array([1, 2, 5, 8, 9]), []
    options = {"key": jax.random.key(2), "sampling": sampling}
    whole = score_pool(model, adapter, pool, **options)
    programs = [program._cache_size() for program in PROGRAMS]
    part = score_pool(model, adapter, pool, rows=chosen, on_batch=seen.append, **options)
    assert [program._cache_size() for program in PROGRAMS] == programs
    assert sum(seen) == len(chosen) * passes_over(pool, sampling)
    others = np.setdiff1d(np.arange(SIZE), chosen)
    for name, values in part.measures.items():
        values = np.asarray(values)
        np.testing.assert_allclose(values[chosen], whole.measures[name][chosen], rtol=1e-4, atol=1e-5, err_msg=name)
        assert (values[others] == 0).all() if name == "response_tokens" else np.isnan(values[others]).all(), name
    for left, right in ((part.responses, whole.responses), (part.lengths, whole.lengths)):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(np.asarray(left)[chosen], np.asarray(right)[chosen])


# Kinds of answers


def test_generated_responses_score_as_if_proposed(model, adapter, encoder, prompts, build):
    generated = score_pool(model, adapter, build("generated"))
    responses, lengths = np.asarray(generated.responses), np.asarray(generated.lengths)
    assert responses.shape == (SIZE, 4)
    assert lengths.min() < lengths.max() == 4
    answers = [response[:length] for response, length in zip(responses, lengths, strict=True)]
    rows = followed_by(encoder, prompts, answers)
    proposed = score_pool(model, adapter, proposed_pool(rows, SHAPES.sequences))
    assert_close(PoolScores(generated.measures), proposed)
    np.testing.assert_array_equal(generated.measures["response_tokens"], lengths)
    # A greedy token is the most probable one, so the two statistics agree.
    certain = 1 - np.exp(-np.asarray(generated.measures["sequence_nll_max"]))
    np.testing.assert_allclose(generated.measures["least_confidence_max"], certain, rtol=1e-4, atol=1e-5)


def test_generated_texts_leave_out_what_is_behind_the_end(model, adapter, encoder, build):
    scores = score_pool(model, adapter, build("generated"))
    want = []
    for row, length in zip(np.asarray(scores.responses), np.asarray(scores.lengths), strict=True):
        want.append(" ".join(WORDS[token] for token in row[:length] if token != encoder.eos_id))
    assert generated_texts(scores, encoder) == want
    with pytest.raises(ValueError, match="generated pool"):
        generated_texts(score_pool(model, adapter, build("proposed")), encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_read_for_those_that_are_asked_about(model, adapter, encoder, build, kind):
    pool = build(kind)
    scores = score_pool(model, adapter, pool)
    found = answer_texts(encoder, pool, scores, np.array([3, 0, 5]))
    if kind == "proposed":
        assert found is None
    elif kind in ("candidates", "branched"):
        chosen = np.asarray(scores.responses)[[3, 0, 5]]
        assert found == [CANDIDATES[place].strip() for place in chosen]
    else:
        texts = generated_texts(scores, encoder)
        assert found == [texts[place].strip() for place in (3, 0, 5)]


def test_generation_ends_at_every_token_that_the_encoder_names(model, adapter, encoder, prompts, build):
    free = score_pool(model, adapter, build("generated"))
    responses, lengths = np.asarray(free.responses), np.asarray(free.lengths)
    extra = next(int(row[0]) for row, n in zip(responses, lengths, strict=True) if n > 1)
    task = Task("words", lambda row: "", lambda row: None, lambda text: text)
    several = Encoder(encoder.tokenizer, task, encoder.limits, end_ids=(extra,))
    scores = score_pool(model, adapter, generated_pool(several, several.prompts(prompts), SHAPES))
    for row, length, got in zip(responses, lengths, np.asarray(scores.lengths), strict=True):
        assert got == next((place + 1 for place in range(length) if row[place] == extra), length)
    assert (np.asarray(scores.lengths) < lengths).any()
    assert extra not in {WORDS.index(word) for text in generated_texts(scores, several) for word in text.split()}


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate-left"])
def test_candidates_that_are_too_long_are_refused(encoder, prompts, too_long):
    """Cut to three tokens and the end, the two would be one and the same."""
    task = Task("words", lambda row: "", lambda row: None, lambda text: text)
    short = Encoder(encoder.tokenizer, task, Limits(8, 4, too_long))
    candidates = (" a b c", " a b c d e f")
    said = "the answer ' a b c d e f' has 7 tokens after the prompt of example p0, over the limit of 4; raise data.max"
    for check in (check_candidates, lambda one, prompt, texts: candidate_pool(one, [prompt], texts, 4)):
        with pytest.raises(DataError, match=said):
            check(short, prompts[0], candidates)
        check(short, prompts[0], candidates[:1])


@pytest.mark.parametrize("kind", ["candidates", "branched"])
def test_candidates_are_a_distribution_over_the_answer_set(model, adapter, encoder, prompts, build, kind):
    scores = score_pool(model, adapter, build(kind))
    nlls = []
    for text in CANDIDATES:
        answer = np.array([WORDS.index(word) for word in text.split()] + [encoder.eos_id], np.int32)
        pool = proposed_pool(followed_by(encoder, prompts, [answer] * SIZE), SHAPES.sequences)
        nlls.append(score_pool(model, adapter, pool).measures["sequence_nll"])
    likelihood = np.exp(-np.asarray(nlls, np.float64).T)
    probs = likelihood / likelihood.sum(axis=1, keepdims=True)
    ordered = np.sort(probs, axis=1)
    want = {
        "sequence_nll": -np.log(ordered[:, -1]),
        "token_entropy": -(probs * np.log(probs)).sum(axis=1),
        "least_confidence": 1 - ordered[:, -1],
        "margin": 1 - (ordered[:, -1] - ordered[:, -2]),
        "bald": np.zeros(SIZE),
        "response_tokens": np.ones(SIZE),
    }
    np.testing.assert_array_equal(scores.responses, probs.argmax(axis=1))
    assert len(np.unique(scores.responses)) > 1
    assert scores.lengths is None
    for name, values in want.items():
        np.testing.assert_allclose(scores.measures[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_base_model_is_the_one_whose_adapter_adds_nothing(model, adapter, build, short):
    pool = build("proposed", short)
    base, full = (score_pool(model, one, pool) for one in (None, adapter))
    silent = adapter._replace(weights=jax.tree.map(jnp.zeros_like, adapter.weights))
    assert_close(base, score_pool(model, silent, pool))
    assert (np.abs(full.measures["sequence_nll"] - base.measures["sequence_nll"]) > 1e-3).all()


# Dropout


@SAMPLED
def test_samples_disagree_with_dropout_and_only_with_it(model, adapter, build, short, kind, mode):
    pool, sampling = build(kind, short), SAMPLING._replace(mode=mode)
    plain, again = (score_pool(model, adapter, pool) for _ in range(2))
    one, same, other = (
        score_pool(model, adapter, pool, key=jax.random.key(seed), sampling=sampling) for seed in (1, 1, 2)
    )
    for name in MEASURES:
        np.testing.assert_array_equal(plain.measures[name], again.measures[name], err_msg=name)
        np.testing.assert_array_equal(one.measures[name], same.measures[name], err_msg=name)
    for name in ("bald", "bald_mean", "bald_max", "jensen_gap"):
        assert (np.asarray(plain.measures[name]) == 0).all(), name
        assert (np.asarray(one.measures[name]) > 0).all(), name
    for name in ("sequence_nll", "token_entropy", "margin"):
        assert (one.measures[name] != other.measures[name]).all(), name
        assert (one.measures[name] != plain.measures[name]).all(), name
    if kind == "generated":  # The response is the deterministic model's; the samples score it.
        np.testing.assert_array_equal(one.responses, plain.responses)
        np.testing.assert_array_equal(one.measures["response_tokens"], plain.lengths)


@SAMPLED
def test_sampled_scores_do_not_depend_on_the_batch(model, adapter, build, short, monkeypatch, kind, mode):
    """The same examples with the same numbers, dealt out to the batches in another order."""
    pool = build(kind, short)
    batched = pool.branched.whole if kind == "branched" else pool
    batches = list(batched.batches())
    first, count = batches[0], len(batches)
    group = len(CANDIDATES) if kind == "candidates" else 1
    rows = len(first.row_mask)
    assert count > 1
    dealt = np.roll(np.arange(count * rows).reshape(-1, group), 3, axis=0).reshape(count, rows)
    names = ("tokens", "prompt_lengths", "lengths", "index", "row_mask")
    joined = {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names}
    mixed = tuple(
        dataclasses.replace(first, **{name: values[places] for name, values in joined.items()}) for places in dealt
    )
    options = {"key": jax.random.key(1), "sampling": SAMPLING._replace(mode=mode)}
    scores = score_pool(model, adapter, pool, **options)
    monkeypatch.setattr(type(batched), "batches", lambda self, chosen=None: iter(mixed))
    assert_close(score_pool(model, adapter, pool, **options), scores)


@SAMPLED
def test_scores_do_not_depend_on_the_shapes(model, adapter, build, kind, mode):
    pool, other = build(kind), build(kind, shapes=Shapes((Shape(6, 10, 50),), (Shape(5, 13, 61),)), batch_size=6)
    assert {batch.tokens.shape for batch in pool.batches()} - {batch.tokens.shape for batch in other.batches()}
    for options in ({}, {"key": jax.random.key(1), "sampling": SAMPLING._replace(mode=mode)}):
        assert_close(score_pool(model, adapter, other, **options), score_pool(model, adapter, pool, **options))


@pytest.mark.parametrize("mode", MODES)
def test_samples_are_drawn_as_asked_for(model, adapter, build, short, mode):
    """Number, rate, mode, key and the example's place in the pool all reach the sampler."""
    pool, key = build("proposed", short), jax.random.key(6)
    scores = score_pool(model, adapter, pool, key=key, sampling=SAMPLING._replace(mode=mode))
    sampling = SAMPLING._replace(mode=mode)
    sample = jax.jit(mc_score_responses, static_argnames=("sampling",))
    for batch in pool.batches():
        inputs = SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)
        keys = sample_keys(key, batch.index, sampling)
        statistics, mask = sample(model, adapter, inputs, keys, sampling=sampling)
        for name, values in sequence_measures(statistics, mask).items():
            got = scores.measures[name][batch.index[batch.row_mask]]
            np.testing.assert_allclose(got, values[batch.row_mask], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_only_shared_masks_are_the_same_for_all_examples(model, adapter, proposals, mode):
    """Six copies of one example: under one sample of the weights they have one score."""
    pool = proposed_pool([proposals[0]] * 6, SHAPES.sequences)
    scores = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=SAMPLING._replace(mode=mode))
    for name in ("sequence_nll", "token_entropy", "bald"):
        values = np.asarray(scores.measures[name])
        if mode == "shared":
            np.testing.assert_allclose(values, values[0], rtol=1e-5, err_msg=name)
        else:
            assert np.diff(np.sort(values)).min() > 1e-4, name


@pytest.mark.parametrize("mode", MODES)
def test_candidates_of_an_example_share_their_masks(model, adapter, encoder, mode):
    """The same text as every candidate: one likelihood under each sample, so no disagreement is left."""
    pool = candidate_pool(encoder, [Prompt(f"p{i}", "a b c") for i in range(4)], (" d", " d", " d"), 4)
    scores = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=SAMPLING._replace(mode=mode))
    np.testing.assert_allclose(scores.measures["token_entropy"], np.log(3), rtol=1e-5)
    np.testing.assert_allclose(scores.measures["bald"], 0, atol=1e-5)


def test_sampling_needs_an_adapter_and_a_key(model, adapter, build):
    for full, key in ((None, jax.random.key(0)), (adapter, None), (None, None)):
        with pytest.raises(ValueError, match="are of an adapter and are drawn from a key; pass both"):
            score_pool(model, full, build("proposed"), key=key, sampling=SAMPLING)


def test_sampling_at_rate_0_is_refused(model, adapter, build):
    with pytest.raises(ConfigError, match="at dropout 0"):
        score_pool(model, adapter, build("proposed"), key=jax.random.key(0), sampling=SAMPLING._replace(rate=0.0))


# Programs


def test_one_program_a_shape(model, adapter, build):
    program = pool_scoring._score_proposed
    score_pool(model, adapter, build("proposed"))
    programs = program._cache_size()
    other = jax.tree.map(lambda leaf: 2 * leaf, adapter)
    for chosen in (range(SIZE)[::-1], range(7)):
        score_pool(model, other, build("proposed", chosen), key=jax.random.key(5))
    assert program._cache_size() == programs


def test_base_and_adapted_model_answer_with_the_same_programs(model, adapter, build):
    """In float32 the adapter is added to the weights, so that nothing is compiled for it."""
    score_pool(model, None, build("generated"))
    programs = pool_scoring._answer._cache_size()
    score_pool(model, adapter, build("generated"))
    assert pool_scoring._answer._cache_size() == programs


def test_shapes_hold_every_row_and_are_few(seed):
    rng = np.random.default_rng(seed)
    for most in (5, 60, 300):
        prompts = rng.integers(1, most, rng.integers(1, 200))
        known = prompts[: rng.integers(0, len(prompts) + 1)] + rng.integers(1, most)
        longest = int(prompts.max()) + most + int(rng.integers(0, most))
        shapes = choose_shapes(prompts.tolist(), known.tolist(), longest, BatchSizes(*rng.integers(1, 20, 2).tolist()))
        assert len(shapes.prompts) <= PROMPT_SHAPES
        assert len(shapes.sequences) <= SEQUENCE_SHAPES + 1
        hidden = [*known, *rng.integers(1, longest + 1, 30), longest]
        for lengths, some in ((prompts, shapes.prompts), (hidden, shapes.sequences)):
            batches = list(
                sequence_batches([TokenizedExample(np.ones(length, np.int32), 1) for length in lengths], some)
            )
            assert sorted(np.concatenate([batch.lengths[batch.row_mask] for batch in batches])) == sorted(lengths)
