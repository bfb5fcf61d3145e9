"""The loop on a narrow model and a small pool, without files."""

import dataclasses
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import skills_model

from star_jax.acquisition.needs import Embedding, GradientSketch, Measure
from star_jax.acquisition.pool_scoring import Sampling, generated_texts, score_pool
from star_jax.acquisition.pools import BatchSizes, choose_shapes, generated_pool
from star_jax.acquisition.strategy import Query, Strategy, get_strategy, pick
from star_jax.active.budget import expected_costs
from star_jax.active.loop import choose, init, learn, step
from star_jax.active.pool import SKIPPED, available
from star_jax.active.query import query_keys, query_of, requests_of, spare_requests
from star_jax.active.state import Problem
from star_jax.annotators.annotator import Answer
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.config import (
    AcquisitionConfig,
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits, TokenizedExample
from star_jax.errors import ConfigError, LabelsNeeded, ScoreError
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.gradients import gradient_sketches
from star_jax.models.lora import init_adapter
from star_jax.runs.records import queried_rows
from star_jax.training.trainer import training_shapes

CONFIG = ExperimentConfig(
    lora=LoraConfig(rank=2, alpha=4, dropout=0.1, training_dropout="tied", targets=("q_proj",)),
    training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=8),
    scoring=ScoringConfig(mc_samples=2, batch_size=32),
    loop=LoopConfig(initial_labels=8, labels_per_round=4, rounds=3),
    data=DataConfig(task="skills"),
)


@pytest.fixture(scope="module")
def examples():
    return skills.pool_examples("R0", 3, 30)


def responses(examples):
    return {example.id: example.response for example in examples}


@pytest.fixture(scope="module")
def problem(examples):
    encoder = Encoder(
        load_tokenizer("embedded:skills"),
        get_task("skills"),
        Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS),
    )
    prompts = [example.prompt for example in examples]
    tokens = encoder.prompts(prompts)
    known = [len(row.tokens) for row in encoder.examples(skills.test_examples()[::20])]
    longest = encoder.limits.prompt + encoder.limits.response
    shapes = choose_shapes([*map(len, tokens)], known, longest, BatchSizes(32, 32))
    shapes = shapes._replace(training=training_shapes(known, [], longest, CONFIG.training))
    pool = generated_pool(encoder, tokens, shapes)
    annotator = SimulatedOracle(responses(examples))
    return Problem(skills_model(), encoder, prompts, tokens, pool, shapes, annotator)


def made(strategy):
    return get_strategy(strategy) if isinstance(strategy, str) else strategy


def play(problem, strategy, rounds=3, key=None):
    key = jax.random.key(0) if key is None else key
    state, infos = init(len(problem.prompts)), []
    for _ in range(rounds):
        state, info = step(CONFIG, made(strategy), problem, state, key)
        infos.append(info)
    return state, infos


@pytest.fixture(scope="module")
def played(problem):
    return play(problem, "star")


def test_budget_is_exact_and_picks_never_repeat(played):
    state, infos = played
    assert [len(info.picked) for info in infos] == [8, 4, 4]
    assert [info.labelled for info in infos] == [8, 12, 16]
    assert len(set(np.concatenate([info.picked for info in infos]).tolist())) == 16
    assert int(np.sum(~np.asarray(available(state.pool)))) == 16
    for number, info in enumerate(infos):
        np.testing.assert_array_equal(np.asarray(state.pool.labelled_in)[info.picked], number)


def test_picks_come_with_what_the_model_guessed_before_it_was_told(problem, played):
    """The guess of a pick is the full model's greedy answer, and the measure beside it that of this answer."""
    _, infos = played
    assert infos[0].guesses is None
    state = init(len(problem.prompts))
    for info in infos[1:]:
        state, _ = step(CONFIG, made("star"), problem, state, jax.random.key(0))
        scores = score_pool(problem.model, state.adapter, problem.pool)
        texts = generated_texts(scores, problem.encoder)
        assert info.guesses == [texts[index].strip() for index in info.picked]
    # Whoever labels is told the same.
    choice = choose(CONFIG, made("star"), problem, state, jax.random.key(0))
    requests = requests_of(problem, choice, "star")
    assert [request.guess for request in requests] == list(choice.guesses)
    measured = np.asarray(choice.full)[np.asarray(choice.picked)]
    np.testing.assert_array_equal(np.asarray([request.uncertainty for request in requests], np.float32), measured)
    first = requests_of(problem, choose(CONFIG, made("star"), problem, init(len(problem.prompts)), jax.random.key(0)))
    assert {(request.guess, request.uncertainty, request.score) for request in first} == {(None, None, None)}
    assert play(problem, "random", rounds=2)[1][1].guesses is None


def test_the_annotator_is_asked_for_what_is_picked_and_once(problem, examples):
    oracle = SimulatedOracle(responses(examples))
    _, infos = play(dataclasses.replace(problem, annotator=oracle), "entropy", rounds=2)
    assert oracle.asked == [examples[i].id for info in infos for i in info.picked]


def test_base_scores_are_computed_once_and_handed_on(problem, played):
    state, infos = played
    np.testing.assert_array_equal(infos[1].base, infos[2].base)
    assert list(state.base) == [Measure("token_entropy", "base")]
    np.testing.assert_array_equal(infos[1].base, np.asarray(state.base[Measure("token_entropy", "base")]))
    again = init(len(problem.prompts))._replace(base=state.base)
    again, _ = step(CONFIG, get_strategy("star"), problem, again, jax.random.key(0))
    _, info = step(CONFIG, get_strategy("star"), problem, again, jax.random.key(0))
    np.testing.assert_array_equal(info.picked, infos[1].picked)


def test_a_step_depends_on_its_state_and_key_alone(problem, played):
    """Going back to an earlier state gives the same future: what resuming relies on."""
    _, infos = played
    state, _ = play(problem, "star", rounds=2)
    state, info = step(CONFIG, get_strategy("star"), problem, state, jax.random.key(0))
    np.testing.assert_array_equal(info.picked, infos[2].picked)
    for ours, theirs in zip(jax.tree.leaves(state.adapter), jax.tree.leaves(played[0].adapter), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_key_gives_another_run(problem, played):
    _, infos = play(problem, "star", rounds=1, key=jax.random.key(1))
    assert set(infos[0].picked.tolist()) != set(played[1][0].picked.tolist())


def test_progress_ends_at_its_total(problem):
    """Of every phase, whatever is scored how often: star asks the base model, for answers, and for samples of them."""
    phases = []

    class Counter:
        @contextmanager
        def phase(self, name, total, unit):
            done = []
            yield done.append
            phases.append((name, total, sum(done)))

    for strategy in ("star", "entropy", "base_only", "random"):
        state = init(len(problem.prompts))
        for _ in range(2):
            state, _ = step(CONFIG, get_strategy(strategy), problem, state, jax.random.key(0), Counter())
    assert all(done == total for _, total, done in phases)
    scored = [total for name, total, _ in phases if name == "score"]
    assert scored == [30 + 2 * 22, 22, 30, 0]  # the base model all, the full one what is unlabelled


def test_random_scores_nothing(problem):
    _, infos = play(problem, "random", rounds=2)
    assert infos[1].scores is infos[1].base is infos[1].full is None


def test_broken_scores_are_named(problem):
    state, _ = play(problem, "base_only", rounds=1)
    broken = np.ones(len(problem.prompts), np.float32)
    place = int(np.flatnonzero(np.asarray(available(state.pool)))[0])
    broken[place] = np.nan
    with pytest.raises(ScoreError, match=problem.prompts[place].id):
        step(
            CONFIG,
            get_strategy("base_only"),
            problem,
            state._replace(base={Measure("token_entropy", "base"): jax.numpy.asarray(broken)}),
            jax.random.key(0),
        )


def test_broken_weights_are_noticed_by_the_default_strategy(problem, played):
    """NaN must reach the check: an entropy of 0 · log 0 = 0 may not swallow it."""
    state = played[0]._replace(round=1)
    broken = jax.tree.map(lambda leaf: leaf * jax.numpy.nan, state.adapter.weights)
    state = state._replace(adapter=state.adapter._replace(weights=broken))
    with pytest.raises(ScoreError, match="not finite"):
        step(CONFIG, get_strategy("star"), problem, state, jax.random.key(0))


# What is asked for, and what comes back


class Person:
    """Skips what it cannot label, and labels no more than so many."""

    def __init__(self, examples, unlabelable=(), most=10**6):
        self.labels, self.unlabelable, self.most = responses(examples), set(unlabelable), most
        self.asked = []

    def annotate(self, requests):
        self.asked.append(list(requests))
        return [
            Answer(one.id, None if one.id in self.unlabelable else self.labels[one.id], "a person")
            for one in requests[: self.most]
        ]

    def instructions(self, open_requests):
        return f"{len(open_requests)} are open"


def test_requests_say_how_high_and_by_what_each_was_picked(problem, examples):
    person = Person(examples)
    _, infos = play(dataclasses.replace(problem, annotator=person), "entropy", rounds=2)
    first, second = person.asked
    assert [(one.rank, one.score) for one in first] == [(rank, None) for rank in range(8)]
    assert [one.rank for one in second] == [0, 1, 2, 3]
    assert [one.score for one in second] == [pytest.approx(infos[1].scores[place]) for place in infos[1].picked]
    assert [one.prompt for one in second] == [problem.prompts[place] for place in infos[1].picked]
    assert [answer.annotator for answer in infos[1].answers] == ["a person"] * 4


def test_a_round_that_waits_for_labels_goes_on_from_its_choice(problem, examples, played):
    """As if everything had been labelled at once."""
    person = Person(examples, most=3)
    waiting = dataclasses.replace(problem, annotator=person)
    key, state = jax.random.key(0), init(len(problem.prompts))
    choice = choose(CONFIG, get_strategy("star"), waiting, state, key)
    with pytest.raises(LabelsNeeded, match=r"^5 are open$"):
        learn(CONFIG, waiting, state, choice, key)
    person.most = 8
    state, info = learn(CONFIG, waiting, state, choice, key)
    np.testing.assert_array_equal(info.picked, played[1][0].picked)
    assert (info.labelled, info.train_loss) == (8, played[1][0].train_loss)


def test_what_was_skipped_is_never_trained_on_or_picked_again_and_counts(problem, examples):
    """Half of everything cannot be labelled: every round gets its number of labels until the pool is used up."""
    skips = {example.id for example in examples[::2]}
    person = Person(examples, skips)
    state, infos = play(dataclasses.replace(problem, annotator=person), "entropy", rounds=4)
    picked = np.concatenate([info.picked for info in infos])
    assert len(set(picked.tolist())) == len(picked) == 30
    assert [info.labelled for info in infos] == [8, 12, 15, 15]
    for info in infos:
        ids = [problem.prompts[place].id for place in info.picked]
        assert info.skipped == sum(name in skips for name in ids)
        assert [answer.skipped for answer in info.answers] == [name in skips for name in ids]
        assert len(info.answers) == len(ids)
    assert state.labels == {
        place: example.response for place, example in enumerate(examples) if example.id not in skips
    }
    labelled_in = np.asarray(state.pool.labelled_in)
    assert set(np.flatnonzero(labelled_in == SKIPPED)) == set(range(0, 30, 2))
    assert not np.asarray(available(state.pool)).any()
    for number, info in enumerate(infos):
        kept = [place for place in info.picked if place in state.labels]
        np.testing.assert_array_equal(labelled_in[kept], number)
    # Each is asked for once, and by name.
    assert len({one.id for batch in person.asked for one in batch}) == sum(map(len, person.asked)) == 30
    assert {one.strategy for batch in person.asked for one in batch} == {"entropy"}


@pytest.mark.parametrize(
    ("strategy", "selection"), [("random", None), ("star", "top_k"), ("star", "power"), ("bald", "power")]
)
def test_what_stands_in_for_a_skipped_pick_is_what_the_same_query_would_have_picked_next(
    problem, examples, strategy, selection
):
    """A query for more is the reference, since all of these rank the whole pool."""
    made = get_strategy(strategy, AcquisitionConfig(selection=selection))
    key = jax.random.key(3)
    before, _ = step(CONFIG, get_strategy("random"), problem, init(len(problem.prompts)), key)
    more = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, labels_per_round=9))
    want = np.asarray(choose(more, made, problem, before, key).picked)
    skips = {problem.prompts[place].id for place in want[[0, 2, 3, 5]]}
    skipping = dataclasses.replace(problem, annotator=Person(examples, skips))
    choice = choose(CONFIG, made, skipping, before, key)
    _, info = learn(CONFIG, skipping, before, choice, key, strategy=made)
    np.testing.assert_array_equal(info.picked, want[:8])
    assert (info.skipped, info.labelled) == (4, 8 + 4)


def test_the_first_batch_is_filled_up_too(problem, examples):
    more = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, initial_labels=10))
    state, key = init(len(problem.prompts)), jax.random.key(0)
    want = np.asarray(choose(more, get_strategy("star"), problem, state, key).picked)
    skips = {problem.prompts[place].id for place in want[[1, 8]]}
    _, (info,) = play(dataclasses.replace(problem, annotator=Person(examples, skips)), "star", rounds=1)
    np.testing.assert_array_equal(info.picked, want)
    assert (info.skipped, info.labelled) == (2, 8)


@pytest.mark.parametrize("first", [1, 4])
def test_replacements_do_not_depend_on_when_others_are_skipped(problem, examples, first):
    """A person who answers little by little, with the choice read from disk in between, is asked for the same."""
    strategy, key = get_strategy("star"), jax.random.key(0)
    before, _ = step(CONFIG, strategy, problem, init(len(problem.prompts)), key)
    choice = choose(CONFIG, strategy, problem, before, key)
    skips = {example.id for example in examples[::3]}
    at_once = dataclasses.replace(problem, annotator=Person(examples, skips))
    whole, info = learn(CONFIG, at_once, before, choice, key, strategy=strategy)

    class Slow(Person):
        known = 0

        def annotate(self, requests):
            seen.extend(one.id for one in requests if one.id not in seen)
            return [answer for answer in super().annotate(requests) if answer.id in seen[: self.known]]

    seen: list[str] = []
    slow = Slow(examples, skips)
    waiting = dataclasses.replace(problem, annotator=slow)
    kept = type(choice)(*(None if leaf is None else jnp.asarray(np.asarray(leaf)) for leaf in choice[:5]))
    for slow.known in range(first, 30, first):
        try:
            state, again = learn(CONFIG, waiting, before, kept, key, strategy=strategy)
        except LabelsNeeded:
            continue
        break
    np.testing.assert_array_equal(again.picked, info.picked)
    assert again.train_loss == info.train_loss
    assert state.labels == whole.labels


def test_nothing_is_scored_again_to_fill_a_round_up(problem, examples):
    """But for a strategy that needs more than one measure of a model."""
    key = jax.random.key(0)
    before = play(problem, "random", rounds=1)[0]
    totals = []

    class Counter:
        @contextmanager
        def phase(self, name, total, unit):
            totals.append((name, total))
            yield lambda count: None

    two = first_unlabelled([Measure("margin"), Measure("sequence_nll")])
    for strategy, passes in ((get_strategy("star"), []), (two, [("score", 22)])):
        choice = choose(CONFIG, strategy, problem, before, key)
        skips = {problem.prompts[int(choice.picked[place])].id for place in (0, 2)}
        skipping = dataclasses.replace(problem, annotator=Person(examples, skips))
        totals.clear()
        _, info = learn(CONFIG, skipping, before, choice, key, Counter(), strategy)
        assert (info.labelled, len(info.picked)) == (8 + 4, 4 + 2)
        assert [entry for entry in totals if entry[0] == "score"] == passes


def test_a_first_batch_that_is_all_skipped_is_one_sentence(problem, examples):
    nobody = dataclasses.replace(problem, annotator=Person(examples, responses(examples)))
    with pytest.raises(ConfigError, match="every example that was picked was skipped; label at least one"):
        play(nobody, "random", rounds=1)


# Strategies that need more than a measure


def far_and_uncertain(seen):
    """Of the most uncertain, the farthest from the pool's mean: an embedding, and a measure of each model."""
    embedding, base, full = Embedding("full", "last", 5), Measure("margin", "base"), Measure("sequence_nll_mean")

    def pick(key, pool, query):
        seen.append(query)
        vectors, worth = pool[embedding], pool[full] - pool[base]
        distance = jnp.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
        scores = jnp.where(pool.unlabelled, distance * jnp.exp(worth), 0)
        return jnp.argsort(-scores)[: query.count], scores

    return Strategy("far_and_uncertain", "of a test", (embedding, base, full), pick)


def test_a_strategy_of_an_embedding_and_two_measures_runs_through_the_loop(problem):
    seen = []
    strategy = far_and_uncertain(seen)
    before = play(problem, strategy, rounds=2)[0]
    state, info = step(CONFIG, strategy, problem, before, jax.random.key(0))
    assert len(seen) == 1  # traced once for all queries
    assert (seen[0].total, seen[0].count) == (CONFIG.loop.rounds - 1, CONFIG.loop.labels_per_round)
    assert len(state.labels) == 16
    # What it saw is what the functions give that compute it.
    unlabelled = np.asarray(available(before.pool))
    base = score_pool(problem.model, None, problem.pool).measures
    full = score_pool(problem.model, before.adapter, problem.pool).measures
    shapes = problem.shapes.prompts
    (vectors,) = embed_prompts(problem.model, before.adapter, problem.tokens, shapes, [Readout("last", 5)])
    vectors = np.asarray(vectors)
    np.testing.assert_allclose(info.base, base["margin"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.full[unlabelled], full["sequence_nll_mean"][unlabelled], rtol=1e-5, atol=1e-6)
    assert np.isnan(info.full[~unlabelled]).all()  # What cannot be picked is not scored.
    worth = np.exp(np.asarray(full["sequence_nll_mean"]) - np.asarray(base["margin"]))
    want = np.where(unlabelled, np.linalg.norm(vectors - vectors.mean(axis=0), axis=1) * worth, 0)
    np.testing.assert_allclose(info.scores, want, rtol=1e-4, atol=1e-5)
    assert unlabelled[info.picked].all()
    assert set(info.picked) == set(np.argsort(-info.scores)[:4])
    assert list(state.base) == [Measure("margin", "base")]
    np.testing.assert_array_equal(info.response_tokens[unlabelled], full["response_tokens"][unlabelled])
    assert not info.response_tokens[~unlabelled].any()


class ScoreCounter:
    """An observer that notes what each scoring said it would go through, what it counted, and what may be kept."""

    def __init__(self):
        self.totals, self.kept = [], []

    def score_log(self, name):
        self.kept.append(name)

    @contextmanager
    def phase(self, name, total, unit):
        done = []
        yield done.append
        if name == "score":
            self.totals.append((total, sum(done)))


def test_each_feature_is_one_pass_over_the_pool(problem):
    """Measures of one model and way of scoring share theirs; what is known of the base model takes none.

    The full model scores what is unlabelled, or all where sketches are made of its answers.
    """
    counter = ScoreCounter()
    totals = counter.totals
    key, size = jax.random.key(0), len(problem.prompts)
    state = play(problem, "random", rounds=1)[0]
    left = size - len(state.labels)
    needs = {
        "two measures": ((Measure("margin"), Measure("sequence_nll")), left),
        "with and without samples": ((Measure("margin"), Measure("bald", samples=True)), 3 * left),
        "two embeddings and a measure": ((Embedding(), Embedding("full"), Measure("margin")), 2 * size + left),
        "two embeddings of one model": ((Embedding("full"), Embedding("full", "last", 3)), size),
        "a sketch and a measure": ((GradientSketch(width=3), Measure("margin")), 2 * size),
        "a sketch alone": ((GradientSketch("base", 3),), 2 * size),
        "both models": ((Measure("margin", "base"), Measure("sequence_nll", "base"), Measure("margin")), size + left),
    }
    kept = {}
    for name, (needed, _) in needs.items():
        choose(CONFIG, first_unlabelled(needed), problem, state, key, counter)
        kept[name], counter.kept = counter.kept, []
    # Each pass keeps what it has by a name of its own.
    assert kept["with and without samples"] == [
        *("full-plain-answers", "full-samples-answers", "full-samples-proposed")
    ]
    assert kept["two embeddings and a measure"] == [
        "base-embedded-mean",
        "full-plain-answers",
        "full-embedded-mean",
    ]
    assert kept["two embeddings of one model"] == ["full-embedded-mean-last3"]
    assert kept["a sketch alone"] == ["base-plain-answers", "base-sketched3"]
    assert totals == [(examples,) * 2 for _, examples in needs.values()]
    totals.clear()
    known = {Measure("margin", "base"): jnp.zeros(size), Measure("sequence_nll", "base"): jnp.ones(size)}
    choose(CONFIG, first_unlabelled(needs["both models"][0]), problem, state._replace(base=known), key, counter)
    assert totals == [(left, left)]


def test_vectors_of_the_base_model_are_computed_once(problem):
    """And handed on by the state, as its measures are."""
    needs, key = (Embedding("base", projection=3), GradientSketch("base", 3), Embedding("full", projection=3)), 0
    state = play(problem, "random", rounds=1)[0]
    choice = choose(CONFIG, first_unlabelled(needs), problem, state, jax.random.key(key))
    after, _ = learn(CONFIG, problem, state, choice, jax.random.key(key))
    assert list(after.base) == list(needs[:2])
    seen = {}

    def pick(key, pool, query):
        return jnp.argsort(~pool.unlabelled)[: query.count], pool[needs[0]][:, 0] + pool[needs[1]][:, 1]

    spoilt = after._replace(base={need: values + 100 for need, values in after.base.items()})
    for name, known in (("kept", after), ("spoilt", spoilt), ("anew", after._replace(base={}))):
        seen[name] = choose(CONFIG, Strategy("shown", "of a test", needs, pick), problem, known, jax.random.key(key))
    np.testing.assert_array_equal(seen["kept"].scores, seen["anew"].scores)
    np.testing.assert_allclose(seen["spoilt"].scores, seen["kept"].scores + 200, rtol=1e-5)


@pytest.mark.parametrize("which", ["full", "base"])
def test_a_sketch_is_of_the_models_own_answer(problem, which):
    state = play(problem, "random", rounds=1)[0]
    need = GradientSketch(which, 6)
    seen = []

    def pick(key, pool, query):
        jax.debug.callback(seen.append, pool[need])
        return jnp.argsort(~pool.unlabelled)[: query.count]

    choose(CONFIG, Strategy("shown", "of a test", (need,), pick), problem, state, jax.random.key(0))
    judge = state.adapter if which == "full" else None
    scored = score_pool(problem.model, judge, problem.pool)
    responses, lengths = np.asarray(scored.responses), np.asarray(scored.lengths)
    rows = [
        TokenizedExample(np.concatenate([prompt, response[:length]]), len(prompt))
        for prompt, response, length in zip(problem.tokens, responses, lengths, strict=True)
    ]
    differentiated = judge or init_adapter(jax.random.key(0), problem.model.params, CONFIG.lora)
    want = gradient_sketches(problem.model, differentiated, rows, problem.shapes.sequences, 6)
    jax.effects_barrier()
    (got,) = seen
    assert np.abs(np.asarray(want)).max() > 0
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(np.asarray(want)).max())


def first_unlabelled(needs, returned=lambda indices: indices):
    def pick(key, pool, query):
        return returned(jnp.argsort(~pool.unlabelled)[: query.count])

    return Strategy("first_unlabelled", "of a test", tuple(needs), pick)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda indices: indices * 0 + indices[0], "strategy first_unlabelled picked an example twice"),
        (lambda indices: indices + 10**6, "picked an example that is not in the unlabelled pool"),
        (lambda indices: indices[:-1], r"returned int32\[3\]; it must return 4 whole numbers"),
    ],
)
def test_picks_that_are_no_batch_of_the_pool_are_refused_by_name(problem, returned, said):
    state = play(problem, "random", rounds=1)[0]
    with pytest.raises(ConfigError, match=said):
        choose(CONFIG, first_unlabelled([], returned), problem, state, jax.random.key(0))


def test_labelled_picks_are_refused_by_name(problem):
    state = play(problem, "random", rounds=1)[0]
    again = Strategy("again", "of a test", (), lambda key, pool, query: jnp.argsort(pool.unlabelled)[: query.count])
    with pytest.raises(ConfigError, match="strategy again picked an example that is not in the unlabelled pool"):
        choose(CONFIG, again, problem, state, jax.random.key(0))


def test_an_embedding_that_is_not_finite_is_named(problem, played):
    state = played[0]._replace(round=1)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.adapter.weights)
    state = state._replace(adapter=state.adapter._replace(weights=broken))
    with pytest.raises(ScoreError, match=r"^30 of 30 examples .* not finite"):
        choose(CONFIG, first_unlabelled([Embedding("full")]), problem, state, jax.random.key(0))
    choose(CONFIG, first_unlabelled([Embedding("base")]), problem, state, jax.random.key(0))


def test_a_prompt_has_no_place_for_a_gold_response():
    with pytest.raises(TypeError):
        Prompt("id", "text", response="gold")
    with pytest.raises((AttributeError, TypeError)):
        Prompt("id", "text").response = "gold"


# A random part of the pool


def with_subset(most):
    return dataclasses.replace(CONFIG, acquisition=AcquisitionConfig(score_at_most=most))


def test_a_query_scores_a_random_part_and_picks_from_it(problem):
    """Everything else as by hand: the strategy on the measures of the whole pool, with the part as its mask."""
    config, strategy, key = with_subset(9), get_strategy("star"), jax.random.key(0)
    state, parts = step(config, strategy, problem, init(len(problem.prompts)), key)[0], []
    assert len(state.labels) == 8
    for _ in range(2):
        choice = choose(config, strategy, problem, state, key)
        part = np.flatnonzero(np.isfinite(np.asarray(choice.full)))
        parts.append(set(part.tolist()))
        unlabelled = np.asarray(available(state.pool))
        assert len(part) == 9
        assert unlabelled[part].all()
        keys = query_keys(key, state)
        base = score_pool(problem.model, None, problem.pool).measures["token_entropy"]
        sampling = Sampling(CONFIG.scoring.mc_samples, CONFIG.lora.dropout, CONFIG.scoring.dropout)
        full = score_pool(problem.model, state.adapter, problem.pool, key=keys.score, sampling=sampling)
        np.testing.assert_allclose(choice.full[part], full.measures["token_entropy"][part], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(choice.base[part], base[part], rtol=1e-4, atol=1e-5)
        mask = np.zeros(len(unlabelled), bool)
        mask[part] = True
        features = (jnp.asarray(base), full.measures["token_entropy"])
        want, scores = pick(strategy, keys.select, features, jnp.asarray(mask), query_of(config, state, 4))
        np.testing.assert_array_equal(choice.picked, want)
        np.testing.assert_allclose(choice.scores[part], scores[part], rtol=1e-5)
        assert np.isnan(choice.scores[unlabelled & ~mask]).all()  # not scored, which is no score
        np.testing.assert_array_equal(choice.picked, choose(config, strategy, problem, state, key).picked)
        state, _ = learn(config, problem, state, choice, key, strategy=strategy)
    assert parts[0] != parts[1]
    another = choose(config, strategy, problem, state._replace(round=1), jax.random.key(1))
    assert set(np.flatnonzero(np.isfinite(np.asarray(another.full))).tolist()) not in parts


def test_the_base_model_scores_what_no_earlier_query_has_scored(problem):
    counter = ScoreCounter()
    totals = counter.totals
    config, strategy, key = with_subset(12), get_strategy("base_only"), jax.random.key(0)
    state = step(config, strategy, problem, init(len(problem.prompts)), key)[0]
    whole = score_pool(problem.model, None, problem.pool).measures["token_entropy"]
    known: set[int] = set()
    for _ in range(3):
        choice = choose(config, strategy, problem, state, key, counter)
        part = set(np.flatnonzero(~np.isnan(np.asarray(choice.scores)) & np.asarray(available(state.pool))).tolist())
        assert len(part) == min(12, 30 - len(state.labels))
        assert totals[-1] == (len(part - known),) * 2
        known |= part
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(np.asarray(choice.base))), sorted(known))
        places = np.asarray(sorted(known))
        np.testing.assert_allclose(choice.base[places], whole[places], rtol=1e-4, atol=1e-5)
        state, _ = learn(config, problem, state, choice, key, strategy=strategy)


def test_vectors_are_of_the_whole_pool_and_nothing_is_scored_for_random(problem):
    state = play(problem, "random", rounds=1)[0]
    choice = choose(with_subset(9), first_unlabelled([Embedding("full")]), problem, state, jax.random.key(0))
    assert len(choice.picked) == 4
    for config in (CONFIG, with_subset(4)):
        np.testing.assert_array_equal(
            choose(config, get_strategy("random"), problem, state, jax.random.key(0)).picked,
            choose(CONFIG, get_strategy("random"), problem, state, jax.random.key(0)).picked,
        )


def test_a_part_that_is_skipped_is_filled_up_from_what_was_not_scored(problem, examples):
    """All of a part is picked, and some of it cannot be labelled."""
    config = with_subset(4)
    state = step(CONFIG, get_strategy("random"), problem, init(len(problem.prompts)), jax.random.key(0))[0]
    choice = choose(config, get_strategy("entropy"), problem, state, jax.random.key(0))
    skips = {problem.prompts[place].id for place in np.asarray(choice.picked)[[0, 2]]}
    skipping = dataclasses.replace(problem, annotator=Person(examples, skips))
    after, info = learn(config, skipping, state, choice, jax.random.key(0), strategy=get_strategy("entropy"))
    assert len(after.labels) == 8 + 4
    assert set(info.picked[:4].tolist()) == set(np.flatnonzero(np.isfinite(info.full)).tolist())
    assert len(info.picked) == len(set(info.picked.tolist())) == 4 + 2
    (*_, last) = queried_rows(get_task("skills"), problem, info, after.labels)
    assert last["score"] is last["full_uncertainty"] is last["prediction"] is None


def with_initial(initial):
    return dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, initial=initial))


@pytest.mark.parametrize("initial", ["typiclust", "k_center", "base_uncertainty"])
def test_the_first_labels_are_those_of_a_strategy_on_the_base_model(problem, initial):
    """On features that are computed here, of a pool in which nothing is labelled."""
    key, state = jax.random.key(5), init(len(problem.prompts))
    choice = choose(with_initial(initial), made("star"), problem, state, key)
    if initial == "base_uncertainty":
        entropy = np.asarray(score_pool(problem.model, None, problem.pool).measures["token_entropy"])
        assert choice.picked.tolist() == sorted(range(30), key=lambda place: -entropy[place])[:8]
        np.testing.assert_allclose(choice.scores, entropy, rtol=1e-5)
    else:
        vectors = embed_prompts(problem.model, None, problem.tokens, problem.shapes.prompts, [Readout("mean", 256)])
        select_key = jax.random.split(jax.random.fold_in(key, 0), 3)[0]
        query = Query(0, 2, 8)
        want, _ = pick(get_strategy(initial), select_key, vectors, jnp.ones(30, bool), query)
        assert choice.picked.tolist() == want.tolist()
    assert all(need.model == "base" for need in choice.base_features)


def test_first_labels_that_are_skipped_are_replaced_by_the_next_best(problem, examples):
    """In the order of the base model's uncertainty, and the run goes on with the features that it has."""
    config, entropy = with_initial("base_uncertainty"), score_pool(problem.model, None, problem.pool)
    order = sorted(range(30), key=lambda place: -np.asarray(entropy.measures["token_entropy"])[place])
    skipped = {examples[order[2]].id, examples[order[8]].id}
    known = {name: label for name, label in responses(examples).items() if name not in skipped}
    asked = dataclasses.replace(problem, annotator=SimulatedOracle(known, skipped))
    state, info = step(config, made("base_only"), asked, init(30), jax.random.key(0))
    assert info.picked.tolist() == [*order[:8], *order[8:10]]
    assert info.labelled == 8
    state, info = step(config, made("base_only"), asked, state, jax.random.key(0))
    assert info.picked.tolist() == order[10:14]


def test_where_it_is_asked_for_picks_have_the_most_score_for_their_tokens(problem):
    """So have those that stand in for skipped ones."""
    loop = dataclasses.replace(CONFIG.loop, budget_unit="tokens", budget_per_round=100)
    config = dataclasses.replace(CONFIG, loop=loop, acquisition=AcquisitionConfig(per_cost=True))
    state = init(len(problem.prompts))._replace(round=1, labels={0: " 1 2 3", 1: " 4"})
    costs = expected_costs(config, problem, state)
    # The words of a prompt, and of a response as long as the two so far are, with the token that ends it.
    assert costs.tolist() == [len(prompt.text.split()) + 3 for prompt in problem.prompts]
    choice = choose(config, get_strategy("base_only"), problem, state, jax.random.key(0))
    worth = np.asarray(choice.scores) / costs
    best = np.argsort(-worth, kind="stable")
    assert np.asarray(choice.picked).tolist() == best[: config.loop.labels_per_round].tolist()
    spare = spare_requests(config, get_strategy("base_only"), problem, state, choice, jax.random.key(0), None)
    assert next(spare).id == problem.prompts[best[config.loop.labels_per_round]].id
