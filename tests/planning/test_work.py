"""Operations and traffic by formula, beside a count in plain loops."""

import dataclasses
from itertools import product

import pytest
from random_models import FAMILIES

from star_jax.checkpoints.tensor_shapes import projection_shapes
from star_jax.config import LoraConfig, ModelConfig, TrainingConfig
from star_jax.data.batching import Shape
from star_jax.models.architecture import Experts
from star_jax.planning.programs import Program
from star_jax.planning.work import sizes_of, work_of

ROWS, WIDTH, PREDICTED = 3, 5, 6
SCORE = Program("score", "score", "score", Shape(ROWS, WIDTH, ROWS * WIDTH), PREDICTED, 1.0)


def counted(shape, lora, rank=0, samples=1, gradient=False, again=False):
    """Multiplications and additions of a pass over full rows, one token, pair and layer after another."""
    kernels = projection_shapes(shape)
    flops = 0
    for _ in range(samples):
        for _layer, _row in product(range(shape.num_hidden_layers), range(ROWS)):
            for place in range(WIDTH):
                for name, (fan_in, out) in kernels.items():
                    own = 2 * fan_in * out
                    low = 2 * rank * (fan_in + out) if name in lora else 0
                    # Forward; gradient of the input; forward once more. Factors have a gradient of their own.
                    flops += own * (1 + gradient + again) + low * (1 + 2 * gradient + again)
                if shape.experts is not None:
                    inner = shape.experts.intermediate_size
                    for _expert in range(shape.experts.per_token):
                        flops += 3 * 2 * shape.hidden_size * inner * (1 + gradient + again)
                    flops += 2 * shape.hidden_size * shape.experts.count * (1 + gradient + again)
                for _seen in range(place + 1):
                    pair = 2 * 2 * shape.num_attention_heads * shape.head_dim
                    flops += pair * (1 + 2 * gradient + again)
        flops += PREDICTED * 2 * shape.vocab_size * shape.hidden_size * (1 + gradient)
    return flops


@pytest.mark.parametrize("family", ["llama", "phi", "experts"])
@pytest.mark.parametrize("samples", [1, 3])
def test_scoring_has_as_many_operations_as_loops_count(planned, family, samples):
    shape, lora = shape_of(planned().shape, family), ("o_proj",)
    config = dataclasses.replace(planned().config, lora=LoraConfig(rank=3, targets=lora))
    for dtype in ("float32", "bfloat16"):
        model = dataclasses.replace(shape, dtype=dtype)
        # In float32 a pass without dropout has the adapter inside the weights.
        rank = 0 if dtype == "float32" and samples == 1 else 3
        found = work_of(dataclasses.replace(SCORE, samples=samples), sizes_of(config, model), config, (1, 1), 0)
        assert found.flops == counted(model, lora, rank, samples)
        assert not found.sent


def shape_of(shape, family):
    if family == "experts":
        return dataclasses.replace(shape, experts=Experts(count=6, per_token=2, intermediate_size=12))
    return dataclasses.replace(shape, **FAMILIES[family])


@pytest.mark.parametrize("again", [False, True])
def test_a_training_step_has_as_many_operations_as_loops_count(planned, again):
    config = dataclasses.replace(planned().config, training=TrainingConfig(rematerialise=again))
    program, shape = dataclasses.replace(SCORE, kind="train"), planned().shape
    found = work_of(program, sizes_of(config, shape), config, (1, 1), 0)
    assert found.flops == counted(shape, config.lora.targets, config.lora.rank, 1, True, again)


def test_a_generation_is_its_prompts_and_a_step_for_each_further_token(planned):
    config, shape, written = planned().config, planned().shape, 4
    program = dataclasses.replace(SCORE, kind="generate", predicted=ROWS * written, written=(2.0, written))
    sizes = sizes_of(config, shape)
    found = work_of(program, sizes, config, (1, 1), written)
    prompts = work_of(dataclasses.replace(SCORE, predicted=ROWS), sizes, config, (1, 1), 0)
    kernels = shape.num_hidden_layers * sum(fan_in * out for fan_in, out in projection_shapes(shape).values())
    flops = moved = 0
    for step in range(1, written):
        # On average over the steps, half of the answer stands in the cache.
        slots = WIDTH + written / 2
        pairs = shape.num_hidden_layers * 4 * shape.num_attention_heads * shape.head_dim * slots
        flops += ROWS * (2 * kernels + pairs + 2 * shape.vocab_size * shape.hidden_size)
        cache = shape.num_hidden_layers * 2 * shape.num_key_value_heads * shape.head_dim * slots
        moved += 4 * (kernels + shape.vocab_size * shape.hidden_size + ROWS * (cache + 4 * shape.vocab_size))
        assert step
    assert found.flops == pytest.approx(prompts.flops + flops)
    assert found.moved == pytest.approx(prompts.moved + moved)


def test_what_devices_get_from_each_other_is_what_they_lack(planned):
    """Of every kernel and factor, in each pass; the gradient goes round a ring twice."""
    config, shape = planned().config, dataclasses.replace(planned().shape, dtype="bfloat16")
    sizes = sizes_of(config, shape)
    kernels = shape.num_hidden_layers * sum(fan_in * out for fan_in, out in projection_shapes(shape).values())
    widths = [projection_shapes(shape)[name] for name in config.lora.targets]
    low = shape.num_hidden_layers * sum(config.lora.rank * (fan_in + out) for fan_in, out in widths)
    for data, fsdp in ((1, 8), (4, 2), (8, 1)):
        lacking = sum(2 * kernels / fsdp + 4 * low / fsdp for _ in range(fsdp - 1))
        sent = work_of(SCORE, sizes, config, (data, fsdp), 0).sent
        assert sum(sent.values()) == pytest.approx(lacking)
        sent = work_of(dataclasses.replace(SCORE, kind="train"), sizes, config, (data, fsdp), 0).sent
        assert sent["all-reduce of the adapter's gradient"] == pytest.approx(2 * 4 * low * 7 / 8)
        assert sum(sent.values()) == pytest.approx(2 * lacking + 2 * 4 * low * 7 / 8)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4)])
def test_quantised_layers_are_as_many_bytes_as_their_bits(planned, kind, bits):
    config = dataclasses.replace(planned().config, model=ModelConfig(quantization=kind))
    sizes, plain = sizes_of(config, planned().shape), sizes_of(planned().config, planned().shape)
    assert sizes.layers * 32 == plain.layers * bits
    assert not sizes.merged
