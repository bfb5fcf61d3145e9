"""The trainer: what it learns, what it leaves alone, and that it does the same thing twice."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import LoraConfig, TrainingConfig
from star_jax.data.batching import Shape, make_batch
from star_jax.data.bucketing import StepLadder
from star_jax.data.tokenization import TokenizedExample
from star_jax.errors import ConfigError
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import UNROLLED_LAYERS
from star_jax.training import trainer
from star_jax.training.trainer import (
    Fixed,
    TrainInfo,
    TrainingRows,
    epoch_batches,
    fit,
    init_state,
    schedule_steps,
    train_batch,
    train_step,
    training_shapes,
)

EOS, LONGEST = 1, 8
ANY_STEP = StepLadder((Shape(6, LONGEST, 6 * LONGEST),))
"""Room for four labelled rows and two of replay, however long."""

# A program is compiled for each pair of configurations, so the tests share two pairs: LORA with CONFIG, and REPLAYED.
LORA = LoraConfig(rank=8, alpha=16, dropout=0.1, targets=("q_proj", "down_proj"))
CONFIG = TrainingConfig(learning_rate=1e-2, epochs=120, batch_size=4, decay_b=0.0)
WITH_REPLAY = TrainingConfig(
    learning_rate=1e-3,
    epochs=3,
    batch_size=4,
    gradient_clip=None,
    decay_b=0.3,
    l2_b=0.01,
    confidence_penalty=0.2,
    entropy_floor=2.0,
    label_smoothing=0.1,
    replay="mastered.jsonl",
    replay_rows=2,
)
REPLAYED = {"lora": dataclasses.replace(LORA, training_dropout="off"), "config": WITH_REPLAY}


def draw_rows(seed: int, count: int, vocabulary: int = 13) -> list[TokenizedExample]:
    """Different prompts of 3 to 5 tokens, each with an answer of one or two and end-of-sequence."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt = np.concatenate([[2 + number % 11, 2 + number // 11], rng.integers(2, vocabulary, rng.integers(1, 4))])
        answer = rng.integers(2, vocabulary, rng.integers(1, 3))
        rows.append(TokenizedExample(np.concatenate([prompt, answer, [EOS]]).astype(np.int32), len(prompt)))
    return rows


def train(key: int, model, rows, replay=(), *, lora=LORA, config=CONFIG, shapes=ANY_STEP, **options):
    return fit(jax.random.key(key), model, TrainingRows(rows, replay, shapes), lora, config, **options)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differs(one, other) -> bool:
    return any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def all_log_probs(model, adapter, tokens):
    """`B×T×V` of whole sequences; what stands behind the end of a shorter one is never looked at."""
    hidden, _ = model.decoder.apply(with_adapter(model.params, adapter), tokens)
    return jax.nn.log_softmax(hidden @ model.params["lm_head"].T)


def padded(rows: list[TokenizedExample]) -> np.ndarray:
    return np.stack([np.pad(row.tokens, (0, LONGEST - len(row.tokens)), constant_values=2) for row in rows])


def response_places(rows: list[TokenizedExample]) -> list[tuple[int, int, int]]:
    """Row, place of the prediction, and token predicted, of every response token."""
    return [
        (number, place - 1, int(row.tokens[place]))
        for number, row in enumerate(rows)
        for place in range(row.prompt_length, len(row.tokens))
    ]


# What is learnt


def test_a_small_mapping_is_learnt(small_model):
    rows = draw_rows(0, 6)
    seen: list[int] = []
    adapter, loss, steps = train(0, small_model, rows, on_step=seen.append)
    assert loss < 0.2  # dropout is on in training
    assert seen == [4, 2] * CONFIG.epochs
    assert steps.shape == (2 * CONFIG.epochs,)
    assert steps[:2].mean() > 2 > 0.2 > steps[-2:].mean()

    log_probs = jax.jit(all_log_probs)
    before, after = (np.asarray(log_probs(small_model, full, padded(rows))) for full in (None, adapter))
    places = response_places(rows)
    assert np.mean([before[place] for place in places]) < -2
    assert all(after[place[:2]].argmax() == place[2] for place in places)
    assert np.mean([after[place] for place in places]) > -0.1


def test_few_rows_are_passed_over_until_there_are_steps_enough(small_model):
    rows = draw_rows(0, 6)
    for least, steps in ((0, 6), (6, 6), (7, 8), (11, 12)):
        config = dataclasses.replace(WITH_REPLAY, min_steps=least)
        seen: list[int] = []
        fitted = train(0, small_model, rows, rows, lora=REPLAYED["lora"], config=config, on_step=seen.append)
        assert schedule_steps(len(rows), config) == steps == len(seen) == len(fitted.step_losses)
        assert seen == [4, 2] * (steps // 2)


@pytest.mark.parametrize(("share", "counted"), [(1e-9, 1), (0.5, 3), (0.6, 4), (1.0, 6)])
def test_the_adapter_is_the_mean_of_the_weights_of_the_last_steps(monkeypatch, small_model, share, counted):
    after: list = []

    def kept_step(*args, **options):
        state, info = train_step(*args, **options)
        after.append(jax.tree.map(np.array, state.weights))
        return state, info

    monkeypatch.setattr(trainer, "train_step", kept_step)
    rows = draw_rows(0, 6)
    config = dataclasses.replace(WITH_REPLAY, average_fraction=share)
    adapter = train(0, small_model, rows, rows, lora=REPLAYED["lora"], config=config).adapter
    assert len(after) == 6
    mean = jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), axis=0), *after[-counted:])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7), adapter.weights, mean)
    assert (counted == 1) != differs(adapter.weights, after[-1])


def test_frozen_weights_stay_and_the_scales_too(small_model):
    before = jax.tree.map(np.array, small_model.params)
    adapter = train(0, small_model, draw_rows(0, 6)).adapter
    assert_same(small_model.params, before)
    assert set(adapter.weights["layers"]) == set(LORA.targets)
    for factors in adapter.weights["layers"].values():
        assert (np.abs(factors["b"]).max(axis=(1, 2)) > 0).all()  # every layer of every projection has moved
    for factor in adapter.scale["layers"].values():
        np.testing.assert_allclose(factor["scale"], LORA.alpha / LORA.rank)


def batch_of(rows: list[TokenizedExample], size: int = 4):
    return train_batch(make_batch(rows, range(len(rows)), [Shape(size, LONGEST, size * LONGEST)]))


def one_step(model, rows, *, size: int = 4, seed: int = 3, config=CONFIG, lora=LORA, row_mask=None, capacity=None):
    """A step from an adapter whose B is not 0, so that both factors have a gradient; also returns that adapter."""
    state, scale = init_state(jax.random.key(seed), model, lora, config)
    draws = iter(jax.random.split(jax.random.key(seed + 1), 100))
    weights = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(draws), leaf.shape), state.weights)
    batch = batch_of(rows, size)
    batch = batch if row_mask is None else batch._replace(row_mask=row_mask)
    start = Adapter(jax.tree.map(jnp.copy, weights), scale)  # the state is donated
    after, info = train_step(
        Fixed(model, scale, jax.random.key(9), jnp.int32(10)), state._replace(weights=weights), batch,
        capacity=capacity, lora=lora, config=config,
    )  # fmt: skip
    return start, after, info


def test_gradient_is_that_of_the_loss_written_out(small_model):
    """With the padding, and without most of it."""
    rows = draw_rows(1, 5)
    assert sum(len(row.tokens) for row in rows) < 40 < 6 * LONGEST
    (start, *with_padding), (_, *in_a_line) = (
        one_step(small_model, rows, size=6, capacity=n, **REPLAYED) for n in (None, 40)
    )
    tokens = padded(rows)

    def loss_of(weights):
        log_probs = all_log_probs(small_model, Adapter(weights, start.scale), tokens)
        total, cross_entropy, count = 0.0, 0.0, 0
        for number, place, token in response_places(rows):
            own = log_probs[number, place]
            nll = -0.9 * own[token] - 0.1 * jnp.sum(own) / 13
            cross_entropy, count = cross_entropy + nll, count + 1
            total += nll + 0.2 * jnp.maximum(0, 2.0 + jnp.sum(jnp.exp(own) * own))
        square = sum(jnp.sum(factors["b"] ** 2) for factors in weights["layers"].values())
        return total / count + 0.01 * square, cross_entropy / count

    (loss, cross_entropy), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(start.weights)
    norm = np.sqrt(sum(float((np.asarray(leaf, np.float64) ** 2).sum()) for leaf in jax.tree.leaves(gradient)))
    for after, info in (with_padding, in_a_line):
        np.testing.assert_allclose(info.loss, loss, rtol=1e-5)
        np.testing.assert_allclose(info.cross_entropy, cross_entropy, rtol=1e-5)
        assert int(info.tokens) == len(response_places(rows))
        np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-4)
        moments = optax.tree.get(after.optimizer, "mu")
        assert jax.tree.structure(moments) == jax.tree.structure(start.weights)  # of the adapter, and of nothing else
        jax.tree.map(lambda m, g: np.testing.assert_allclose(10 * m, g, rtol=1e-3, atol=1e-5), moments, gradient)
        for name, factors in after.weights["layers"].items():
            for factor, decay in (("a", 0.0), ("b", 0.3)):
                old, moment = (np.asarray(tree["layers"][name][factor]) for tree in (start.weights, moments))
                want = old - WITH_REPLAY.learning_rate * (10 * moment / (np.abs(10 * moment) + 1e-8) + decay * old)
                np.testing.assert_allclose(factors[factor], want, rtol=1e-4, atol=1e-7)


def test_padding_rows_contribute_nothing(small_model):
    rows, others = draw_rows(1, 3), draw_rows(2, 1)
    _, plain, info = one_step(small_model, rows)
    # Rows stand in a batch by length, under the numbers that they came with.
    real = batch_of(rows + others).numbers != 3
    _, filled, other = one_step(small_model, rows + others, row_mask=real)
    _, counted, third = one_step(small_model, rows + others)
    np.testing.assert_allclose(other, info, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7),
        *(optax.tree.get(state.optimizer, "mu") for state in (plain, filled)),
    )
    assert abs(float(third.loss) - float(info.loss)) > 1e-3
    assert differs(counted.weights, filled.weights)


def test_first_step_from_a_fresh_adapter_moves_b_alone(small_model):
    state, scale = init_state(jax.random.key(4), small_model, LORA, CONFIG)
    before = jax.tree.map(np.array, state.weights)
    batch = batch_of(draw_rows(3, 4))
    fixed = Fixed(small_model, scale, jax.random.key(0), jnp.int32(1))
    after, _ = train_step(fixed, state, batch, lora=LORA, config=CONFIG)
    assert int(after.step) == 1
    for name, factors in after.weights["layers"].items():
        np.testing.assert_array_equal(factors["a"], before["layers"][name]["a"])  # A's gradient is 0 while B is
        assert (np.asarray(factors["b"]) != 0).any()


def test_loss_reported_is_the_mean_over_tokens_of_the_last_epoch(small_model, monkeypatch):
    infos = []

    def recording(*arguments, **options):
        state, info = train_step(*arguments, **options)
        infos.append(info)
        return state, info

    monkeypatch.setattr(trainer, "train_step", recording)
    rows = draw_rows(4, 5)  # steps of four rows and of one
    _, loss, steps = train(0, small_model, rows, **REPLAYED)
    assert len(infos) == 6
    assert len({int(info.tokens) for info in infos}) > 1
    last = infos[-2:]
    assert sum(int(info.tokens) for info in last) == len(response_places(rows))
    want = sum(float(info.cross_entropy) * int(info.tokens) for info in last) / sum(int(info.tokens) for info in last)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_array_equal(steps, [float(info.cross_entropy) for info in infos])


# Keys and programs


def test_same_key_same_bits_other_key_other_adapter(small_model):
    rows = draw_rows(5, 5)
    (one, loss, steps), (again, same, same_steps), (other, _, _) = (train(key, small_model, rows) for key in (1, 1, 2))
    assert_same(one, again)
    assert loss == same
    np.testing.assert_array_equal(steps, same_steps)
    assert differs(one.weights, other.weights)


@pytest.mark.parametrize("mode", ["per_token", "tied", "shared"])
def test_dropout_draws_anew_each_step_and_for_each_key(small_model, mode):
    batch, lora = batch_of(draw_rows(6, 4)), dataclasses.replace(LORA, training_dropout=mode)

    def loss(key: int, number: int) -> float:
        state, scale = init_state(jax.random.key(0), small_model, lora, CONFIG)
        weights = {"layers": {n: f | {"b": f["b"] + 0.1} for n, f in state.weights["layers"].items()}}
        state = state._replace(weights=weights, step=jnp.asarray(number, jnp.int32))
        fixed = Fixed(small_model, scale, jax.random.key(key), jnp.int32(30))
        _, info = train_step(fixed, state, batch, lora=lora, config=CONFIG)
        return float(info.loss)

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0), loss(1, 1)}) == 4


def test_dropout_asked_for_at_rate_0_is_refused(small_model):
    lora = dataclasses.replace(LORA, dropout=0.0, training_dropout="tied")
    with pytest.raises(ConfigError, match=r"lora\.dropout"):
        train(0, small_model, draw_rows(7, 2), lora=lora)


def test_one_program_whatever_the_number_of_rows(small_model):
    train(0, small_model, draw_rows(8, 4), **REPLAYED, replay=draw_rows(9, 5))
    programs = train_step._cache_size()
    for count in (1, 3, 9):
        train(0, small_model, draw_rows(8, count), **REPLAYED, replay=draw_rows(9, count))
    assert train_step._cache_size() == programs


# Order of the rows


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (4, 4), (10, 4), (7, 1)])
def test_each_epoch_covers_each_row_once(rows, batch_size):
    batches = list(epoch_batches(jax.random.key(0), rows, batch_size, epochs=3))
    steps = -(-rows // batch_size)
    assert len(batches) == 3 * steps
    for epoch in range(3):
        mine = batches[epoch * steps : (epoch + 1) * steps]
        assert all(len(batch) == batch_size for batch in mine[:-1])
        assert sorted(np.concatenate(mine).tolist()) == list(range(rows))


def test_order_is_new_each_epoch_and_for_each_key():
    one, again, other = (np.concatenate(list(epoch_batches(jax.random.key(key), 30, 4, epochs=2))) for key in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one[:30] != one[30:]).any()
    assert (one != other).any()


# Shapes of steps


@pytest.mark.parametrize(
    ("labelled", "replay", "options"),
    [
        ([30, 41, 12, 77, 50, 33], [], {}),
        ([30, 41, 12, 77, 50, 33], [20, 21], {"replay_rows": 2, "replay": "mastered.jsonl"}),
        ([30, 41, 12, 77, 50, 33], [200], {"replay_rows": 3, "replay": "mastered.jsonl"}),
        ([5], [], {}),
        ([], [], {}),
        ([], [9], {"replay_rows": 1, "replay": "mastered.jsonl"}),
    ],
)
def test_every_step_fits_a_shape(rng, labelled, replay, options):
    """Steps of rows like those that are known, and of any others up to the longest there may be."""
    config, longest = TrainingConfig(batch_size=4, **options), 200
    ladder = training_shapes(labelled, replay, longest, config)
    assert ladder == training_shapes(labelled, replay, longest, config)
    shapes = ladder.shapes
    assert {shape.rows for shape in shapes} == {config.batch_size + config.replay_rows}
    for known in (labelled or [longest], range(1, longest + 1), [longest]):
        for count in 20 * [config.batch_size] + [1]:
            lengths = [*rng.choice(known, count), *rng.choice(replay or [longest], config.replay_rows)]
            batch = make_batch(
                [TokenizedExample(np.zeros(length, np.int32), 1) for length in lengths], range(len(lengths)), shapes
            )
            assert batch.capacity >= sum(lengths)
            assert batch.tokens.shape[1] >= max(lengths)


def test_a_fit_takes_the_shapes_that_pay_for_its_own_steps(small_model, monkeypatch):
    """The same for the same rows and key, whatever was trained on before."""
    taken = []

    def stepped(fixed, state, batch, *, capacity, **options):
        taken.append((batch.inputs.tokens.shape, capacity))
        return state, TrainInfo(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.ones(()))

    monkeypatch.setattr(trainer, "train_step", stepped)
    monkeypatch.setattr(trainer, "program_tokens", lambda model: 300)
    ladder = training_shapes([9], [], 100, CONFIG)

    def shapes_of(sizes, epochs):
        taken.clear()
        rows = [TokenizedExample(np.zeros(size, np.int32), 1) for size in sizes]
        train(0, small_model, rows, shapes=ladder, config=dataclasses.replace(CONFIG, epochs=epochs))
        return list(taken)

    of_short = shapes_of([9] * 8, 3)
    assert {capacity for _, capacity in of_short} == {ladder.usual[0].capacity}
    long = shapes_of([9] * 8 + [60] * 8, 30)
    assert len({*long}) > 1
    assert max(capacity for _, capacity in long) < ladder.usual[-1].capacity
    assert shapes_of([9] * 8, 3) == of_short
    # One step that is not as usual takes what holds any.
    assert {capacity for _, capacity in shapes_of([60] * 4, 1)} == {ladder.usual[-1].capacity}


def test_a_program_is_worth_more_tokens_of_a_smaller_model(small_model):
    layers = small_model.params["layers"]
    half = small_model.replace(params={**small_model.params, "layers": dict(list(layers.items())[::2])})
    assert trainer.program_tokens(half) > trainer.program_tokens(small_model) > 0


def test_the_shape_of_a_step_changes_nothing(small_model):
    """Neither the room for more rows nor a line: a row's number picks its dropout, wherever it stands."""
    rows = draw_rows(18, 4)
    (_, one, info), (_, other, same) = (
        one_step(small_model, rows, size=size, capacity=capacity) for size, capacity in ((4, None), (7, 41))
    )
    np.testing.assert_allclose(same, info, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        *(optax.tree.get(state.optimizer, "mu") for state in (one, other)),
    )


def test_a_step_is_counted_once_the_device_has_finished_it(small_model, monkeypatch):
    """The trainer waits for each step before it counts it: what is only dispatched says nothing of how quick it is."""
    said: list[str] = []
    whole = jax.block_until_ready

    def waiting(tree):
        if isinstance(tree, trainer.TrainInfo):
            said.append("waited")
        return whole(tree)

    monkeypatch.setattr(trainer.jax, "block_until_ready", waiting)
    train(0, small_model, draw_rows(0, 6), on_step=lambda rows: said.append(f"counted {rows}"))
    assert said == ["waited", "counted 4", "waited", "counted 2"] * CONFIG.epochs


# Replay


@pytest.fixture
def packed(monkeypatch) -> list[list[tuple[int, ...]]]:
    """Tokens of the rows of every batch that `fit` packs."""
    seen: list[list[tuple[int, ...]]] = []

    def recording(rows, *arguments):
        seen.append([tuple(row.tokens.tolist()) for row in rows])
        return make_batch(rows, *arguments)

    monkeypatch.setattr(trainer, "make_batch", recording)
    return seen


def names(rows):
    return [tuple(row.tokens.tolist()) for row in rows]


def test_replay_rows_ride_in_every_step_and_are_drawn_evenly(small_model, packed):
    rows, replay = draw_rows(10, 6), draw_rows(11, 5)
    seen: list[int] = []
    train(0, small_model, rows, replay, **REPLAYED, on_step=seen.append)
    assert seen == [4, 2] * 3  # replay rows are not labels
    labelled, replayed = set(names(rows)), set(names(replay))
    assert all(set(batch[:-2]) <= labelled and set(batch[-2:]) <= replayed for batch in packed)
    drawn = [name for batch in packed for name in batch[-2:]]
    assert len(drawn) == 12
    for start in (0, 5):
        assert set(drawn[start : start + 5]) == replayed  # all of them before any comes again
    for epoch in range(3):
        assert sorted(name for batch in packed[2 * epoch : 2 * epoch + 2] for name in batch[:-2]) == sorted(labelled)


def test_more_replay_rows_a_step_than_there_are(small_model, packed):
    replay = draw_rows(12, 1)
    train(0, small_model, draw_rows(13, 2), replay, **REPLAYED)
    assert [batch[-2:] for batch in packed] == [names(replay) * 2] * 3


def test_replay_rows_are_trained_on(small_model):
    rows = draw_rows(14, 3)
    (one, loss, _), (other, other_loss, _) = (
        train(0, small_model, rows, draw_rows(seed, 3), **REPLAYED) for seed in (15, 16)
    )
    assert loss != other_loss
    assert differs(one.weights, other.weights)


# Refusals


def test_a_loss_that_is_not_finite_is_an_error(small_model):
    head = small_model.params["lm_head"].at[0, 0].set(jnp.nan)
    broken = small_model.replace(params={**small_model.params, "lm_head": head})
    with pytest.raises(FloatingPointError, match=r"loss is nan after 240 steps; lower training\.learning_rate"):
        train(0, broken, draw_rows(17, 6))


def test_no_rows_is_an_error(small_model):
    with pytest.raises(ValueError, match="at least one labelled row"):
        train(0, small_model, [])


@pytest.mark.parametrize("dropout", ["per_token", "shared", "off"])
@pytest.mark.parametrize("rematerialise", [False, True])
def test_kernels_of_their_own_give_the_adapter_that_a_stack_gives(
    monkeypatch, make_model, tiny_config, dropout, rematerialise
):
    model = make_model(dataclasses.replace(tiny_config, num_hidden_layers=UNROLLED_LAYERS + 2))
    rows = draw_rows(0, 12, tiny_config.vocab_size)
    lora = dataclasses.replace(LORA, training_dropout=dropout, dropout=0.0 if dropout == "off" else 0.2)
    config = dataclasses.replace(CONFIG, rematerialise=rematerialise, epochs=2)
    given = []
    step = trainer.train_step

    def noted(fixed, *args, **rest):
        given.append(fixed)
        return step(fixed, *args, **rest)

    monkeypatch.setattr(trainer, "train_step", noted)
    found = train(3, model, rows, lora=lora, config=config)
    assert all("kernels" in fixed.model.params for fixed in given)
    monkeypatch.setattr(trainer, "kernels_apart", lambda model: model)
    expected = train(3, model, rows, lora=lora, config=config)
    for ours, theirs in zip(*(jax.tree.leaves(one.adapter.weights) for one in (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert float(found.step_losses[-1]) != float(found.step_losses[0])
