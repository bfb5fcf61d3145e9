"""Scoring a pool: the order of the results, the three kinds of answers, and dropout's noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from star_jax.acquisition import pool_scoring
from star_jax.acquisition.measures import MEASURES
from star_jax.acquisition.pool_scoring import (
    PoolScores,
    Sampling,
    candidate_pool,
    generated_pool,
    generated_texts,
    proposed_pool,
    score_pool,
)
from star_jax.config import ConfigError
from star_jax.data import batching
from star_jax.data.batching import Encoder, Limits, Row
from star_jax.data.examples import Prompt
from star_jax.data.tasks.task import Task
from star_jax.models.checkpoint_hf import LanguageModel, projection_shapes
from star_jax.models.lora import Adapter
from star_jax.models.transformer import Decoder, TransformerConfig

WORDS = ["</s>", *"abcdefghijkl"]
CANDIDATES = (" a", " b c", " d e f")
SIZE = 11
SAMPLING = Sampling(3, 0.3, "tied")
SHAPE = TransformerConfig(
    vocab_size=len(WORDS),
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    rng = np.random.default_rng(0)

    def normal(*shape: int):
        return jnp.asarray(rng.normal(size=shape) * 0.4, jnp.float32)

    depth, width = SHAPE.num_hidden_layers, SHAPE.hidden_size
    layers = {name: {"kernel": normal(depth, *shape)} for name, shape in projection_shapes(SHAPE).items()}
    layers |= {name: {"scale": 1 + normal(depth, width)} for name in ("input_norm", "post_attention_norm")}
    params = {
        "embed_tokens": {"embedding": normal(SHAPE.vocab_size, width)},
        "layers": layers,
        "norm": {"scale": 1 + normal(width)},
        "lm_head": normal(SHAPE.vocab_size, width),
    }
    return LanguageModel(Decoder(SHAPE), params)


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    rng = np.random.default_rng(1)
    weights = {}
    for name in ("q_proj", "up_proj"):
        width, features = projection_shapes(SHAPE)[name]
        a, b = rng.normal(size=(2, width, 3)), rng.normal(size=(2, 3, features))
        weights[name] = {"a": jnp.asarray(a * 0.3, jnp.float32), "b": jnp.asarray(b * 0.5, jnp.float32)}
    return Adapter({"layers": weights}, {"layers": {name: {"scale": jnp.ones(2)} for name in weights}})


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
def proposals(encoder, prompts) -> list[Row]:
    rng = np.random.default_rng(3)
    answers = [rng.integers(1, len(WORDS), rng.integers(2, 4)) for _ in prompts]
    return [
        Row(np.concatenate([tokens, answer]).astype(np.int32), len(tokens))
        for tokens, answer in zip(encoder.prompts(prompts), answers, strict=True)
    ]


@pytest.fixture
def several_buckets(monkeypatch) -> None:
    """Cuts even these small limits into buckets, for the pools built from here on."""
    monkeypatch.setattr(batching, "NARROW", 4)


def shapes(pool) -> set[tuple[int, ...]]:
    return {batch.tokens.shape for batch in pool.batches}


def assert_close(one: PoolScores, other: PoolScores, order=slice(None)) -> None:
    """`one` equals `other` taken in `order`."""
    assert tuple(one.measures) == tuple(other.measures)
    assert set(one.measures) == set(MEASURES)
    for name, values in one.measures.items():
        assert values.shape == (SIZE,)
        np.testing.assert_allclose(values, other.measures[name][order], rtol=1e-4, atol=1e-5, err_msg=name)
    for left, right in ((one.responses, other.responses), (one.lengths, other.lengths)):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_array_equal(left, right[order])


# Order of the results


@pytest.mark.parametrize("kind", ["generated", "candidates", "proposed", "proposed_sampled"])
def test_results_stand_in_the_order_of_the_prompts(request, model, adapter, encoder, prompts, proposals, kind):
    """One bucket and one batch, where the order cannot be lost, against several of both."""

    def build(batch_size: int):
        if kind == "generated":
            return generated_pool(encoder, prompts, batch_size)
        if kind == "candidates":
            return candidate_pool(encoder, prompts, CANDIDATES, batch_size)
        return proposed_pool(encoder, proposals, batch_size)

    options = {"key": jax.random.key(1), "sampling": SAMPLING} if kind == "proposed_sampled" else {}
    plain = build(SIZE)
    request.getfixturevalue("several_buckets")
    bucketed = build(4)
    assert len(plain.batches) == len(shapes(plain)) == 1
    assert len(bucketed.batches) > len(shapes(bucketed)) > 1
    places = np.concatenate([batch.index[batch.row_mask] for batch in bucketed.batches])
    assert (np.diff(places) < 0).any()
    seen: list[int] = []
    scores = score_pool(model, adapter, bucketed, on_batch=seen.append, **options)
    assert_close(scores, score_pool(model, adapter, plain, **options))
    group = len(CANDIDATES) if kind == "candidates" else 1
    assert seen == [batch.row_mask.sum() // group for batch in bucketed.batches]
    assert sum(seen) == SIZE


def test_permuted_examples_have_permuted_scores(model, adapter, encoder, prompts, proposals):
    order = np.random.default_rng(4).permutation(SIZE)
    for build, items in (
        (lambda items: generated_pool(encoder, items, SIZE), prompts),
        (lambda items: proposed_pool(encoder, items, SIZE), proposals),
        (lambda items: candidate_pool(encoder, items, CANDIDATES, SIZE), prompts),
    ):
        scores = score_pool(model, adapter, build(items))
        permuted = score_pool(model, adapter, build([items[i] for i in order]))
        assert_close(permuted, scores, order)
        assert np.unique(scores.measures["sequence_nll"]).size == SIZE


# Kinds of answers


@pytest.mark.parametrize("adapted", [False, True])
def test_generated_responses_score_as_if_proposed(model, adapter, encoder, prompts, adapted):
    full = adapter if adapted else None
    generated = score_pool(model, full, generated_pool(encoder, prompts, SIZE))
    lengths = np.asarray(generated.lengths)
    assert generated.responses.shape == (SIZE, 4)
    assert lengths.min() < lengths.max() == 4
    rows = [
        Row(np.concatenate([tokens, response[:length]]), len(tokens))
        for tokens, response, length in zip(
            encoder.prompts(prompts), np.asarray(generated.responses), lengths, strict=True
        )
    ]
    proposed = score_pool(model, full, proposed_pool(encoder, rows, SIZE))
    assert_close(PoolScores(generated.measures), proposed)
    np.testing.assert_array_equal(generated.measures["response_tokens"], lengths)
    # A greedy token is the most probable one, so the two statistics agree.
    certain = 1 - np.exp(-np.asarray(generated.measures["sequence_nll_max"]))
    np.testing.assert_allclose(generated.measures["least_confidence_max"], certain, rtol=1e-4, atol=1e-5)


def test_generated_texts_leave_out_what_is_behind_the_end(model, adapter, encoder, prompts, proposals):
    scores = score_pool(model, adapter, generated_pool(encoder, prompts, SIZE))
    want = []
    for row, length in zip(np.asarray(scores.responses), np.asarray(scores.lengths), strict=True):
        want.append(" ".join(WORDS[token] for token in row[:length] if token != encoder.eos_id))
    assert generated_texts(scores, encoder) == want
    with pytest.raises(ValueError, match="generated pool"):
        generated_texts(score_pool(model, adapter, proposed_pool(encoder, proposals, SIZE)), encoder)


def test_candidates_are_a_distribution_over_the_answer_set(model, adapter, encoder, prompts):
    scores = score_pool(model, adapter, candidate_pool(encoder, prompts, CANDIDATES, SIZE))
    nlls = []
    for text in CANDIDATES:
        answer = [WORDS.index(word) for word in text.split()] + [encoder.eos_id]
        rows = [
            Row(np.concatenate([tokens, answer]).astype(np.int32), len(tokens)) for tokens in encoder.prompts(prompts)
        ]
        nlls.append(score_pool(model, adapter, proposed_pool(encoder, rows, SIZE)).measures["sequence_nll"])
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


# Dropout


def build_pools(encoder, prompts, proposals):
    return {
        "generated": generated_pool(encoder, prompts, SIZE),
        "candidates": candidate_pool(encoder, prompts, CANDIDATES, SIZE),
        "proposed": proposed_pool(encoder, proposals, SIZE),
    }


@pytest.mark.parametrize("kind", ["generated", "candidates", "proposed"])
def test_samples_disagree_with_dropout_and_only_with_it(model, adapter, encoder, prompts, proposals, kind):
    pool = build_pools(encoder, prompts, proposals)[kind]
    plain, again = (score_pool(model, adapter, pool) for _ in range(2))
    one, same, other = (
        score_pool(model, adapter, pool, key=jax.random.key(seed), sampling=SAMPLING) for seed in (1, 1, 2)
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


def test_the_samples_of_an_example_share_their_masks_between_its_candidates(model, adapter, encoder):
    """The same text as every candidate: one likelihood under each sample, so no disagreement is left."""
    prompts = [Prompt(f"p{i}", "a b c") for i in range(SIZE)]
    pool = candidate_pool(encoder, prompts, (" d", " d", " d"), SIZE)
    scores = score_pool(model, adapter, pool, key=jax.random.key(3), sampling=SAMPLING)
    np.testing.assert_allclose(scores.measures["token_entropy"], np.log(3), rtol=1e-5)
    np.testing.assert_allclose(scores.measures["bald"], 0, atol=1e-5)


def test_sampling_needs_an_adapter_and_a_key(model, adapter, encoder, proposals):
    pool = proposed_pool(encoder, proposals, SIZE)
    for full, key in ((None, jax.random.key(0)), (adapter, None), (None, None)):
        with pytest.raises(ValueError, match="acts on an adapter and draws from a key; pass both"):
            score_pool(model, full, pool, key=key, sampling=SAMPLING)


def test_sampling_at_rate_0_is_refused(model, adapter, encoder, proposals):
    pool = proposed_pool(encoder, proposals, SIZE)
    with pytest.raises(ConfigError, match=r"lora\.dropout = 0"):
        score_pool(model, adapter, pool, key=jax.random.key(0), sampling=SAMPLING._replace(rate=0.0))


# Programs


def test_one_program_a_bucket(several_buckets, model, adapter, encoder, prompts, proposals):
    pool = proposed_pool(encoder, proposals, 4)
    program = pool_scoring._score_proposed
    score_pool(model, adapter, pool)
    programs = program._cache_size()
    other = jax.tree.map(lambda leaf: 2 * leaf, adapter)
    for rows in (proposals[::-1], proposals[:7]):
        score_pool(model, other, proposed_pool(encoder, rows, 4), key=jax.random.key(5))
    assert program._cache_size() == programs
