"""One row a prompt against a row for every candidate: the same scores, and the cheaper of the two is taken."""

import jax
import numpy as np
import pytest
from random_models import random_adapter, random_model

from star_jax.acquisition.branched_pool import PAIR_COST, Reading, branch_pool
from star_jax.acquisition.branched_scoring import _score_branched, choose_pass
from star_jax.acquisition.pool_scoring import Sampling, _score_candidates, score_pool
from star_jax.acquisition.pools import CandidatePool
from star_jax.data.batching import Shape
from star_jax.data.tokenization import TokenizedExample
from star_jax.models.architecture import Experts, TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=17,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
)
BEGINNING = (11, 12, 13)
CANDIDATES = ((3, 4), (3, 6), (7, 5))
KEY = jax.random.key(5)


def rows_of(prompts, candidates):
    return [
        TokenizedExample(np.asarray([*prompt, *candidate], np.int32), len(prompt))
        for prompt in prompts
        for candidate in candidates
    ]


@pytest.fixture(scope="module")
def pool():
    rng = np.random.default_rng(0)
    prompts = [(*BEGINNING, *rng.integers(1, 10, length)) for length in (4, 1, 2, 6, 3, 3, 5)]
    rows = rows_of(prompts, CANDIDATES)
    shapes = (Shape(3 * len(CANDIDATES), 12, 3 * len(CANDIDATES) * 12),)
    return CandidatePool(rows, shapes, len(CANDIDATES), branch_pool(rows, len(CANDIDATES), 2))


@pytest.fixture(scope="module")
def judge():
    rng = np.random.default_rng(1)
    return random_model(rng, SHAPE), random_adapter(rng, SHAPE)


@pytest.mark.parametrize("mode", ["none", "shared", "tied"])
def test_scores_are_those_of_a_row_for_every_candidate(judge, pool, mode):
    sampling = None if mode == "none" else Sampling(3, 0.2, mode)
    way = choose_pass(judge[0], pool.branched, KEY, sampling)
    assert way is not None
    assert (way.form is pool.branched.behind) == (mode in ("none", "shared"))
    assert (way.beginning is not None) == (way.form is pool.branched.behind)
    found, plain = (
        score_pool(*judge, one, key=KEY, sampling=sampling, detailed=True)
        for one in (pool, pool._replace(branched=None))
    )
    np.testing.assert_array_equal(found.responses, plain.responses)
    assert len(np.unique(plain.measures["sequence_nll"])) == pool.size
    for name, values in plain.measures.items():
        np.testing.assert_allclose(found.measures[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, rtol=1e-4, atol=1e-6)
    probs = np.asarray(plain.probabilities, np.float64)
    mean = probs.mean(axis=1)
    mutual = (probs * np.log(probs)).sum(axis=2).mean(axis=1) - (mean * np.log(mean)).sum(axis=1)
    np.testing.assert_allclose(plain.measures["bald"], mutual, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(plain.responses, mean.argmax(axis=1))


@pytest.mark.parametrize("branched", [True, False])
def test_a_part_of_a_pool_is_read_by_the_programs_of_the_whole(judge, pool, branched):
    """Also one of short prompts alone, which would have narrower shapes of its own."""
    pool = pool if branched else pool._replace(branched=None)
    whole = score_pool(*judge, pool)
    sizes = [program._cache_size() for program in (_score_branched, _score_candidates)]
    numbers = [6, 1, 2]
    found = score_pool(*judge, pool.part(numbers))
    assert [program._cache_size() for program in (_score_branched, _score_candidates)] == sizes
    assert sizes[not branched] > 0
    np.testing.assert_array_equal(found.responses, np.asarray(whole.responses)[numbers])
    for name, values in whole.measures.items():
        np.testing.assert_allclose(
            found.measures[name], np.asarray(values)[numbers], rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_tokens_are_counted_that_are_read(pool):
    branched = pool.branched
    assert branched.beginning.tolist() == list(BEGINNING)
    lengths = np.array([len(row.tokens) for row in pool.rows])
    assert branched.plain == Reading(lengths.sum(), (lengths**2).sum(), 7 * 6)
    own = np.array([4, 1, 2, 6, 3, 3, 5])
    behind = own + 2  # The first token of the first two, and that of the last.
    whole = behind + len(BEGINNING)
    # Its candidates are predicted at the end of the prompt and behind two tokens.
    assert branched.whole.reading == Reading(whole.sum(), (whole**2).sum(), 7 * 3)
    pairs = (behind * (behind + len(BEGINNING))).sum() + len(BEGINNING) ** 2
    assert branched.behind.reading == Reading(behind.sum() + len(BEGINNING), pairs, 7 * 3)


@pytest.mark.parametrize("experts", [None, Experts(8, 2, 12)])
def test_operations_are_those_of_the_products(experts):
    config = TransformerConfig(
        vocab_size=17,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        experts=experts,
    )
    inner = 20 if experts is None else 2 * 12
    weights = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * inner  # queries, keys and values, output, MLP
    assert Reading(1, 0, 0).operations(config) == 3 * 2 * weights
    assert Reading(0, 1, 0).operations(config) == PAIR_COST * 3 * 4 * 32
    assert Reading(0, 0, 1).operations(config) == 2 * 16 * 17


def test_long_candidates_behind_short_prompts_have_rows_of_their_own(judge):
    """A row of all would compare every candidate with every other, and save one token of each."""
    rng = np.random.default_rng(2)
    candidates = [tuple(rng.permutation(16)[:15] + 1) * 20 for _ in range(6)]
    rows = rows_of([(1,), (2,)], candidates)
    branched = branch_pool(rows, len(candidates), 2)
    assert branched.whole.reading.tokens < branched.plain.tokens
    assert choose_pass(judge[0], branched, KEY, None) is None
    short = branch_pool(rows_of([(1,) * 9, (2,) * 9], [one[:2] for one in candidates]), len(candidates), 2)
    assert choose_pass(judge[0], short, KEY, None) is not None


def test_texts_without_a_token_in_common_have_rows_of_their_own(judge):
    rows = [TokenizedExample(np.array(tokens, np.int32), 1) for tokens in ([1, 2], [3, 2])]
    assert branch_pool(rows, 2, 4) is None
    assert choose_pass(judge[0], None, KEY, None) is None
