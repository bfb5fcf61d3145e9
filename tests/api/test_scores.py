"""Scores of a pool by name, and batches selected by them."""

import json
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import star_jax as sj
from star_jax.acquisition.strategy import Query, get_strategy, pick
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.api.model import TunedAdapter
from star_jax.cli.score import score_file
from star_jax.cli.score_flags import ScoreConfig
from star_jax.tracking.console import Progress

CLOSED = sj.Format(prompt="{{ question }} ", answers=("1 3 4", "4 3 1", "9 9 9"))


@pytest.fixture(scope="module")
def scores(model, pool, adapter):
    return sj.score_pool(model, pool, adapter)


@pytest.fixture(scope="module")
def sampled(model, pool, adapter):
    return sj.score_pool(model, pool, adapter, mc_samples=3, key=5)


@pytest.fixture
def file(tmp_path, rows):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_command(file, model, **options):
    """Columns of what `star-jax score` says of the file."""
    written = score_file(ScoreConfig(model=model.name, data=str(file), task="skills", **options), Progress())
    return {name: [row[name] for row in written] for name in written[0]}


def test_a_mapping_of_all_measures_in_the_order_of_the_pool(scores, pool):
    assert set(scores) == set(MEASURES)
    assert len(scores) == len(MEASURES)
    assert scores.ids == pool.ids
    assert not scores.samples
    for name in scores:
        assert scores[name].shape == scores.base[name].shape == (len(pool),)
    with pytest.raises(KeyError, match="entropy_of_tokens"):
        scores["entropy_of_tokens"]


def test_the_same_as_the_command_writes(file, model, pool, adapter, scores, sampled, tmp_path):
    folder = str(adapter.save(tmp_path / "adapter"))
    options = {"max_prompt_tokens": 5, "max_response_tokens": 59}
    base = of_command(file, model, **options)
    full = of_command(file, model, adapter=folder, **options)
    samples = of_command(file, model, adapter=folder, mc_samples=3, seed=5, **options)
    for ours, command in ((scores.base, base), (scores, full), (sampled, samples)):
        for name in set(command) - {"id", "response"}:
            np.testing.assert_allclose(ours[name], command[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert list(scores.responses) == full["response"]
    assert scores.ids == full["id"]


def test_without_an_adapter_the_base_model_is_scored_twice_in_name_alone(model, pool, scores):
    bare = sj.score_pool(model, pool)
    for name in MEASURES:
        np.testing.assert_array_equal(bare[name], bare.base[name])
        np.testing.assert_array_equal(bare[name], scores.base[name])
    assert bare.responses != scores.responses


def test_labels_are_not_looked_at(model, rows, pool):
    labelled = sj.read_pool([row | {"answer": "1"} for row in rows], "skills")
    one, other = sj.score_pool(model, pool), sj.score_pool(model, labelled)
    np.testing.assert_array_equal(one["token_entropy"], other["token_entropy"])


def test_a_closed_answer_set_is_scored_as_a_distribution(model):
    pool = sj.read_pool([{"question": "rev 4 3 1 ="}, {"question": "rev 1 3 4 ="}], CLOSED)
    scores = sj.score_pool(model, pool)
    assert list(scores.responses) == ["1 3 4", "4 3 1"]
    assert (scores["token_entropy"] <= math.log(3) + 1e-6).all()
    assert (scores["response_tokens"] == 1).all()
    with pytest.raises(sj.DataError, match="the answer ' 1 3 4' has 4 tokens"):
        sj.score_pool(model, pool, limits=sj.TokenLimits(response=2))


def test_samples_disagree_and_repeat_by_key(model, pool, adapter, sampled):
    assert sampled.samples
    assert (sampled["bald"] > 0).all()
    again = sj.score_pool(model, pool, adapter, mc_samples=3, key=5)
    other = sj.score_pool(model, pool, adapter, mc_samples=3, key=6)
    np.testing.assert_array_equal(again["bald"], sampled["bald"])
    assert (other["bald"] != sampled["bald"]).any()


def test_samples_that_would_all_be_the_same_are_refused(model, pool, adapter):
    with pytest.raises(sj.ConfigError, match="mc_samples is 3 and there is no adapter"):
        sj.score_pool(model, pool, mc_samples=3)
    still = TunedAdapter(adapter.weights, model.name, dropout=0.0)
    with pytest.raises(sj.ConfigError, match="at dropout 0"):
        sj.score_pool(model, pool, still, mc_samples=3)
    with pytest.raises(sj.ConfigError, match="mc_samples is 0; it must be at least 1"):
        sj.score_pool(model, pool, adapter, mc_samples=0)
    with pytest.raises(sj.ConfigError, match="'shard'"):
        sj.score_pool(model, pool, adapter, mc_samples=3, dropout="shard")


def test_batches_are_told_and_change_nothing(model, pool, scores, adapter):
    told = []
    small = sj.score_pool(model, pool, adapter, batch_size=5, on_batch=told.append)
    assert sum(told) % len(pool) == 0
    assert len(told) > 2
    assert small.responses == scores.responses
    np.testing.assert_allclose(small["sequence_nll"], scores["sequence_nll"], rtol=1e-4, atol=1e-5)


def test_a_data_frame_has_a_row_an_example(scores, pool):
    frame = scores.to_pandas()
    assert list(frame.index) == pool.ids
    assert frame.index.name == "id"
    assert list(frame.columns) == ["response", *scores]
    assert frame.loc["q03", "token_entropy"] == scores["token_entropy"][3]


def test_scores_survive_a_pickle(scores):
    again = pickle.loads(pickle.dumps(scores))
    assert (again.ids, again.responses) == (scores.ids, scores.responses)
    np.testing.assert_array_equal(again["token_entropy"], scores["token_entropy"])


@pytest.mark.parametrize("strategy", ["random", "entropy", "margin", "entropy_dynamic", "star", "bald", "base_only"])
def test_what_is_selected_is_what_the_strategy_picks(sampled, pool, strategy):
    labelled = ("q02", "q07")
    chosen = get_strategy(strategy)
    arrays = [jnp.asarray((sampled.base if need.model == "base" else sampled)[need.name]) for need in chosen.needs]
    unlabelled = jnp.asarray([name not in labelled for name in pool.ids])
    picked, _ = pick(chosen, jax.random.key(3), arrays, unlabelled, Query(jnp.asarray(4), 9, 5))
    found = sj.select_batch(sampled, strategy=strategy, count=5, query=4, queries=9, labelled=labelled, key=3)
    assert found == [pool.ids[place] for place in picked.tolist()]
    assert len(set(found)) == 5
    assert not set(found) & set(labelled)


def test_the_first_pick_is_the_most_uncertain(scores, pool):
    order = np.argsort(-scores["token_entropy"], kind="stable")
    assert sj.select_batch(scores, strategy="entropy", count=12) == [pool.ids[place] for place in order]


def test_the_weight_of_the_base_model_falls_with_the_query(scores):
    blend = {"strategy": "entropy_dynamic", "count": 12, "acquisition": sj.AcquisitionConfig(schedule="linear")}
    first, last = (sj.select_batch(scores, query=query, **blend) for query in (0, 9))
    assert first == sj.select_batch(scores, strategy="base_only", count=12)
    assert last == sj.select_batch(scores, strategy="entropy", count=12)
    assert first != last


def test_chance_is_in_the_key(scores):
    one, again, other = (sj.select_batch(scores, strategy="random", count=6, key=key) for key in (0, 0, 1))
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"count": 0}, "count is 0 and 12 examples are unlabelled"),
        ({"count": 13}, "count is 13 and 12 examples are unlabelled"),
        ({"count": 12, "labelled": ["q00"]}, "count is 12 and 11 examples are unlabelled"),
        ({"count": 2.0}, r"count is 2\.0; it must be a whole number"),
        ({"count": "2"}, "count is '2'; it must be a whole number"),
        ({"count": True}, "count is True; it must be a whole number"),
        ({"count": 2, "query": -1}, "query is -1"),
        ({"count": 2, "queries": 0}, "queries is 0"),
        ({"count": 2, "labelled": "q00"}, "labelled is the text 'q00'"),
        ({"count": 2, "strategy": "entrpy"}, r"did you mean entropy\?"),
        ({"count": 2, "strategy": "bald"}, "pass adapter= and mc_samples= to score_pool"),
        (
            {"count": 2, "strategy": "star_votes"},
            "vote_entropy.*which score_pool does not give; use it in an ActiveLoop",
        ),
        ({"count": 2, "strategy": "group_balanced"}, "Group.*which score_pool does not give"),
    ],
)
def test_a_selection_that_cannot_be_made_is_one_sentence(scores, options, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        sj.select_batch(scores, **options)


@pytest.mark.usefixtures("registries")
def test_a_strategy_that_needs_embeddings_says_what_to_pass(model, pool, scores):
    wanted = sj.Embedding(pooling="last", projection=4)

    @sj.register_strategy("longest", needs=[wanted])
    def longest(key, pool, query):
        norms = jnp.linalg.norm(pool[wanted], axis=1)
        return jnp.argsort(jnp.where(pool.unlabelled, -norms, jnp.inf))[: query.count]

    with pytest.raises(sj.ConfigError, match=r"longest needs Embedding.*'last'.*pass features="):
        sj.select_batch(scores, strategy="longest", count=3)
    embedded = sj.score_pool(model, pool, features=[wanted])
    vectors = embedded.features[wanted]
    assert vectors.shape == (len(pool), 4)
    order = np.argsort(-np.linalg.norm(vectors, axis=1))
    assert sj.select_batch(embedded, strategy="longest", count=3) == [pool.ids[place] for place in order[:3]]


@pytest.mark.parametrize("answers", [None, ("1 2 3", "4 5 6")], ids=["generated", "closed"])
def test_gradient_sketches_of_both_models(model, adapter, answers):
    rows = [{"question": f"rev {number} 2 3 ="} for number in range(5)]
    pool = sj.read_pool(rows, "skills" if answers is None else sj.Format(prompt="{{ question }} ", answers=answers))
    full, base = sj.GradientSketch(width=8), sj.GradientSketch("base", width=8)
    with pytest.raises(sj.ConfigError, match=r"gradient sketch of the full model is of its adapter.*pass adapter="):
        sj.score_pool(model, pool, features=[full])
    assert sj.score_pool(model, pool, features=[base]).features[base].any()
    found = sj.score_pool(model, pool, adapter, features=[full, base]).features
    assert found[full].shape == found[base].shape == (5, 8)
    assert (np.abs(found[full] - found[base]).max(axis=1) > 0).all()
