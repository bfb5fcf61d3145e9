"""What scoring at a large vocabulary holds, as the compiler plans it: nothing is allocated, and nothing is run."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from star_jax.config import LoraConfig
from star_jax.inference.mc_dropout import Sampling, mc_score_responses, sample_keys
from star_jax.inference.scoring import score_responses
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import init_adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import Decoder, LanguageModel

ROWS, WIDTH = 16, 512
SHAPE = TransformerConfig(
    vocab_size=128_256,
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
)
LOGITS = 4 * ROWS * WIDTH * SHAPE.vocab_size
"""Bytes of float32 logits of all positions, which is what scoring must not hold."""


@pytest.fixture(autouse=True)
def _optimised_programs() -> Iterator[None]:
    """What is measured is what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


@pytest.mark.parametrize(("samples", "capacity"), [(1, None), (1, ROWS * WIDTH), (3, ROWS * WIDTH)])
def test_no_more_than_a_quarter_of_the_logits_beside_the_arguments(
    samples: int, capacity: int | None, record_property: Callable[[str, object], None]
) -> None:
    """Where responses stand is known at run time only, so that this is what a batch needs whose every token is one."""
    key, decoder = jax.eval_shape(lambda: jax.random.key(0)), Decoder(SHAPE)
    model = LanguageModel(decoder, jax.eval_shape(decoder.init, key, integers(ROWS, WIDTH))["params"])
    adapter = jax.eval_shape(partial(init_adapter, config=LoraConfig(rank=64)), key, model.params)
    inputs = SequenceInputs(integers(ROWS, WIDTH), integers(ROWS), integers(ROWS))

    def sampled(model, adapter, inputs, key, index):
        sampling = Sampling(samples, 0.1, "shared")
        return mc_score_responses(model, adapter, inputs, sample_keys(key, index, sampling), sampling, capacity)

    if samples == 1:
        lowered = jax.jit(partial(score_responses, capacity=capacity)).lower(model, adapter, inputs)
    else:
        lowered = jax.jit(sampled).lower(model, adapter, inputs, key, integers(ROWS))
    plan = lowered.compile().memory_analysis()
    share = (plan.temp_size_in_bytes + plan.output_size_in_bytes) / LOGITS
    print(f"K = {samples}, {capacity} capacity: {share:.3f} of the logits")
    record_property("share", share)
    assert plan.argument_size_in_bytes > 4 * SHAPE.vocab_size * SHAPE.hidden_size  # the plan is of the whole program
    assert 0 < share <= 0.25
