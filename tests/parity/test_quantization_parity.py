"""NF4 against bitsandbytes, the library that QLoRA was published with."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.ops.quantization import NF4_LEVELS, NF4Kernel, matmul, quantize

pytestmark = [
    pytest.mark.parity,
    # bitsandbytes looks for compiled kernels of another package, and says that it does without them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.mark.parametrize("spread", [1e-4, 0.05, 30.0])
def test_nf4_codes_scales_and_values_are_those_of_bitsandbytes(rng: np.random.Generator, spread: float) -> None:
    import torch
    from bitsandbytes import functional

    weight = (spread * rng.standard_t(3, size=(96, 320))).astype(np.float32)
    weight[7, 64:128] = 0
    packed, state = functional.quantize_4bit(torch.from_numpy(weight), blocksize=64, quant_type="nf4")
    widened = functional.dequantize_4bit(packed, state).numpy()
    kernel = quantize(jnp.asarray(weight.T), "nf4")
    assert isinstance(kernel, NF4Kernel)
    np.testing.assert_array_equal(np.asarray(NF4_LEVELS, np.float32), state.code.numpy())
    np.testing.assert_array_equal(np.asarray(kernel.scale).T.ravel(), state.absmax.numpy())
    np.testing.assert_array_equal(np.asarray(kernel.dequantize(jnp.float32)).T, widened)
    # A block of zeros has no scale; any code stands for it.
    real = np.ones((96, 160), bool)
    real[7, 32:64] = False
    np.testing.assert_array_equal(np.asarray(kernel.codes).T[real], packed.numpy().reshape(96, 160)[real])

    x = rng.normal(size=(5, 320)).astype(np.float32)
    np.testing.assert_allclose(matmul(jnp.asarray(x), kernel), x @ widened.T, rtol=1e-4, atol=1e-3 * spread)
