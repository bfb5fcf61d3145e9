"""The accelerators' kernels where there is no accelerator: interpreted, or compiled as far as a CPU can."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import Mesh, PartitionSpec

from star_jax.ops import attention_kernels
from star_jax.ops.attention import AttentionOptions, self_attention
from star_jax.ops.attention_kernels import IMPLEMENTATIONS, choose_implementation, cudnn, splash

Array = jax.Array
Arrays = tuple[Array, Array, Array]


def self_attend(*parts: jax.Array, kernel: Any = None, **options: Any) -> jax.Array:
    """`self_attention`, its options by name."""
    return self_attention(*parts, AttentionOptions(**options), kernel=kernel)


def random_parts(rng: np.random.Generator, shape: tuple[int, ...], groups: int) -> Arrays:
    """Query `…×H×d` of that shape, and key and value with G heads."""
    fewer = (*shape[:-2], groups, shape[-1])
    query, key, value = (rng.normal(size=size).astype(np.float32) for size in (shape, fewer, fewer))
    return jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)


def value_and_gradients(attention: Callable[..., Array], parts: Arrays, weight: Array) -> tuple[Array, Arrays]:
    def total(parts: Arrays) -> tuple[Array, Array]:
        out = attention(*parts)
        return jnp.sum(out * weight), out

    gradients, out = jax.jit(jax.grad(total, has_aux=True))(parts)
    return out, gradients


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splash attention runs on the CPU."""
    monkeypatch.setitem(IMPLEMENTATIONS, "splash", partial(splash, interpret=True))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("length", "groups", "options"),
    [(200, 1, {}), (128, 2, {"scale": 0.2, "softcap": 1.5}), (150, 4, {"window": 20, "softcap": 3.0})],
)
def test_splash_equals_xla_in_value_and_gradient(
    rng: np.random.Generator, length: int, groups: int, options: dict[str, float]
) -> None:
    parts = random_parts(rng, (2, length, 4, 16), groups)
    real = np.arange(length)[:, None, None] < np.asarray([length, length - 60])[:, None, None, None]
    weight = np.where(real, rng.normal(size=parts[0].shape), 0).astype(np.float32)
    got = value_and_gradients(partial(self_attend, **options, kernel="splash"), parts, weight)
    want = value_and_gradients(partial(self_attend, **options, kernel="xla"), parts, weight)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)


@pytest.mark.usefixtures("interpreted")
def test_layers_of_two_windows_share_one_program(rng: np.random.Generator) -> None:
    windows = (None, 30, 4096)
    parts = random_parts(rng, (1, 128, 2, 8), 1)

    def stack(query: Array, key: Array, value: Array, kernel: str) -> Array:
        def layer(hidden: Array, window: Array) -> tuple[Array, None]:
            mixed = self_attention(hidden, key, value, AttentionOptions(window=window), windows=windows, kernel=kernel)
            return hidden + mixed, None

        sizes = jnp.asarray([np.iinfo(np.int32).max if window is None else window for window in windows])
        return jax.lax.scan(layer, query, sizes)[0]

    def total(query: Array, kernel: str) -> Array:
        return jnp.sum(stack(query, *parts[1:], kernel) ** 2)

    got, want = (jax.jit(jax.value_and_grad(total), static_argnums=1)(parts[0], kernel) for kernel in ("splash", "xla"))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    np.testing.assert_allclose(got[1], want[1], rtol=1e-3, atol=1e-4)
    windowed, everywhere = (jax.jit(partial(self_attend, window=window, kernel="xla"))(*parts) for window in (30, None))
    assert abs(np.sum(np.square(windowed)) - np.sum(np.square(everywhere))) > 1e-3


@pytest.mark.usefixtures("interpreted")
def test_splash_under_vmap(rng: np.random.Generator) -> None:
    parts = random_parts(rng, (3, 2, 20, 2, 8), 2)
    got = jax.jit(jax.vmap(partial(self_attention, kernel="splash")))(*parts)
    one = jax.jit(partial(self_attention, kernel="xla"))
    want = np.stack([one(*(np.asarray(part)[sample] for part in parts)) for sample in range(3)])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def products(jaxpr: Any) -> Iterator[Any]:
    """The precisions that the products of a program ask for, those inside of kernels included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield from products(part)


@pytest.mark.parametrize(("dtype", "high"), [("float32", True), ("bfloat16", False)])
def test_splash_asks_for_the_precision_that_its_factors_have(rng: np.random.Generator, dtype: str, high: bool) -> None:
    """A TPU's compiler refuses kernels with bfloat16 factors and float32 precision, in a gradient as in a value."""
    parts = tuple(part.astype(dtype) for part in random_parts(rng, (1, 128, 2, 8), 1))
    with jax.default_matmul_precision("highest"):
        traced = jax.make_jaxpr(jax.grad(lambda *parts: splash(*parts, scale=1.0).sum(), argnums=(0, 1, 2)))(*parts)
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    found = list(products(traced.jaxpr))
    assert len(found) >= 7  # two of the value, five of the gradient
    assert {one == highest for one in found} == {high}


def test_an_array_window_needs_its_values(rng: np.random.Generator) -> None:
    parts = random_parts(rng, (1, 8, 2, 8), 2)
    with pytest.raises(ValueError, match="pass the windows that there are"):
        self_attention(*parts, AttentionOptions(window=jnp.asarray(3)), kernel="splash")


def lowered_for_cuda(function: Callable[..., Array], *shapes: tuple[int, ...]) -> str:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def with_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX asks for the version of cuDNN when it traces; no more of it is needed to lower."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


@pytest.mark.usefixtures("with_cudnn")
@pytest.mark.parametrize("window", [None, 50])
def test_cudnn_is_called_forward_and_backward(window: int | None) -> None:
    def total(query: Array, key: Array, value: Array) -> Array:
        return jnp.sum(
            self_attention(query, key, value, AttentionOptions(window=window), kernel="cudnn").astype(jnp.float32) ** 2
        )

    text = lowered_for_cuda(jax.grad(total, argnums=(0, 1, 2)), (2, 200, 8, 64), (2, 200, 2, 64), (2, 200, 2, 64))
    assert "__cudnn$fmhaSoftmax(" in text
    assert "__cudnn$fmhaSoftmaxBackward(" in text
    assert "tensor<2x256x8x64xbf16>" in text
    # Causal by the kernel's own mask, and no lengths or bias beside query, key and value.
    assert "mask_type\\22: \\22CAUSAL" in text
    assert f"sliding_window_length\\22: {window or 0}" in text


@pytest.mark.usefixtures("with_cudnn")
def test_cudnn_sees_a_mapped_axis_as_part_of_the_batch() -> None:
    kv = (3, 2, 128, 2, 64)
    text = lowered_for_cuda(jax.vmap(partial(cudnn, scale=0.1)), (3, 2, 128, 8, 64), kv, kv)
    assert text.count("__cudnn$fmhaSoftmax(") == 1
    assert "tensor<6x128x8x64xbf16>" in text


def device(platform: str, version: str = "", capability: str = "") -> SimpleNamespace:
    client = SimpleNamespace(platform_version=version)
    return SimpleNamespace(platform=platform, client=client, compute_capability=capability)


CPU, TPU, ROCM = device("cpu"), device("tpu"), device("gpu", "rocm 7")
A100, H100, T4 = (device("gpu", "cuda 13000", capability) for capability in ("8.0", "9.0", "7.5"))


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "softcap", "devices", "kernel", "reason"),
    [
        (CPU, "float32", 64, None, 1, "xla", ""),
        (ROCM, "bfloat16", 64, None, 1, "xla", ""),
        (TPU, "float32", 80, 30.0, 1, "splash", ""),
        (TPU, "bfloat16", 128, None, 4, "xla", "shard_map"),
        (A100, "bfloat16", 128, None, 8, "cudnn", ""),
        (A100, "float16", 64, None, 1, "cudnn", ""),
        (A100, "float32", 64, None, 1, "xla", "not float32"),
        (A100, "bfloat16", 64, 50.0, 1, "xla", "no cap"),
        (A100, "bfloat16", 256, None, 1, "xla", "up to 128, not 256"),
        (H100, "bfloat16", 256, None, 1, "cudnn", ""),
        (H100, "bfloat16", 100, None, 1, "xla", "not 100"),
        (T4, "float16", 64, None, 1, "xla", "has 7.5"),
    ],
)
def test_the_kernel_of_a_platform(
    device: SimpleNamespace,
    dtype: str,
    head_dim: int,
    softcap: float | None,
    devices: int,
    kernel: str,
    reason: str,
) -> None:
    choice = choose_implementation(dtype, head_dim, softcap=softcap, device=device, devices=devices)
    assert choice.kernel == kernel
    assert bool(choice.reason) == bool(reason)
    assert reason in choice.reason


def test_a_program_split_by_shard_map_counts_as_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_kernels.jax, "device_count", lambda: 4)
    chosen = []

    def record(x: Array) -> Array:
        chosen.append(choose_implementation("bfloat16", 64, device=TPU).kernel)
        return x

    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    split = jax.shard_map(record, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"))
    jax.jit(split)(jnp.zeros(2))
    jax.jit(record)(jnp.zeros(2))
    assert chosen == ["splash", "xla"]
