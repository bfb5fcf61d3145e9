"""The products of the decoder, and their written-out gradients, against plain products in float64."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.ops.matmul import DropoutMask, lora_matmul, merged_kernel, merged_matmul, product

WIDTH, FEATURES, RANK = 7, 5, 2
ROUNDING = 2.0**-8
"""Half a unit in the last of bfloat16's eight bits, relative."""

Arrays = list[np.ndarray]


def draw(rng: np.random.Generator, leading: tuple[int, ...] = (3, 4), width: int = WIDTH) -> Arrays:
    """x `…×I`, W, A, B and a scale, all of a size that makes each part of the sum show."""
    x, kernel = rng.normal(size=(*leading, width)), rng.normal(size=(width, FEATURES))
    a, b = rng.normal(size=(width, RANK)), rng.normal(size=(RANK, FEATURES))
    return [np.float32(part) for part in (x, kernel, a, b, 0.7)]


def draw_mask(rng: np.random.Generator, *shape: int) -> DropoutMask:
    return DropoutMask(jnp.asarray(rng.random(shape) < 0.7), 1 / 0.7)


def adapted_by(mask: DropoutMask | None) -> Callable[..., jax.Array]:
    """`lora_matmul` under a mask, with the arguments of the others."""
    return lambda x, *rest: lora_matmul(x, mask, *rest)


def plain(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    return x @ kernel + scale * ((x @ a) @ b)


def with_gradients(function: Callable[..., jax.Array], count: int) -> Callable[..., list[jax.Array]]:
    """(direction, arguments) -> the function's value, and its gradient in that direction for the first `count`."""

    @jax.jit
    def run(direction: jax.Array, *arguments: jax.Array) -> list[jax.Array]:
        value, pull = jax.vjp(lambda *moved: function(*moved, *arguments[count:]), *arguments[:count])
        return [value, *pull(direction.astype(value.dtype))]

    return run


def exact_product(direction: np.ndarray, x: np.ndarray, kernel: np.ndarray) -> Arrays:
    """Value and both gradients of x W, float64."""
    x, kernel, direction = (np.asarray(part, np.float64) for part in (x, kernel, direction))
    of_kernel = x.reshape(-1, x.shape[-1]).T @ direction.reshape(-1, direction.shape[-1])
    return [x @ kernel, direction @ kernel.T, of_kernel]


def exact_adapted(direction: np.ndarray, *arguments: np.ndarray, mask: DropoutMask | None = None) -> Arrays:
    """Value of x W + scale · (x' A) B, and its gradients for x, W, A, B and the scale, float64."""
    x, kernel, a, b, scale, direction = (np.asarray(part, np.float64) for part in (*arguments, direction))
    mask = 1.0 if mask is None else np.asarray(mask.entries) * mask.scale
    value, of_x, of_kernel = exact_product(direction, x, kernel)
    added, of_masked, of_delta = exact_product(direction, x * mask, a @ b)
    parts = [value + scale * added, of_x + scale * mask * of_masked, of_kernel]
    return [*parts, scale * of_delta @ b.T, scale * a.T @ of_delta, np.sum(of_delta * (a @ b))]


def assert_close(
    got: Sequence[jax.Array], exact: Callable[..., Arrays], direction: np.ndarray, *arguments: np.ndarray
) -> None:
    """To float32's rounding of sums whose parts do not cancel: little may be left of one whose parts do."""
    want, uncancelled = exact(direction, *arguments), exact(*map(np.abs, (direction, *arguments)))
    for found, right, whole in zip(got, want, uncancelled, strict=True):
        assert found.shape == right.shape
        assert (np.abs(found - right) <= 2e-6 * whole).all()


@pytest.mark.parametrize("leading", [(), (1,), (6,), (3, 4), (2, 3, 2)])
def test_float32_equals_float64(rng: np.random.Generator, leading: tuple[int, ...]) -> None:
    arguments, direction = draw(rng, leading), rng.normal(size=(*leading, FEATURES)).astype(np.float32)
    got = with_gradients(product, 2)(direction, *arguments[:2])
    assert_close(got, exact_product, direction, *arguments[:2])
    for function in (merged_matmul, adapted_by(None)):
        got = with_gradients(function, 5)(direction, *arguments)
        assert_close(got, exact_adapted, direction, *arguments)
        assert {part.dtype for part in got} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("shape", [(WIDTH,), (3, 1, WIDTH), (3, 4, WIDTH)])
def test_a_masked_input_equals_float64(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    arguments, direction = draw(rng), rng.normal(size=(3, 4, FEATURES)).astype(np.float32)
    mask = draw_mask(rng, *shape)
    got = with_gradients(adapted_by(mask), 5)(direction, *arguments)
    assert_close(got, partial(exact_adapted, mask=mask), direction, *arguments)


def test_bfloat16_is_rounded_once_forwards_and_backwards(rng: np.random.Generator) -> None:
    """Sums over a thousand numbers, which in bfloat16 would stop growing."""
    tokens, width, features = 1000, 600, 40
    x, kernel, direction = (
        jnp.asarray(rng.uniform(0, 1, shape), jnp.bfloat16)
        for shape in ((2, tokens // 2, width), (width, features), (2, tokens // 2, features))
    )
    got = with_gradients(product, 2)(direction, x, kernel)
    for found, want in zip(got, exact_product(direction, x, kernel), strict=True):
        assert found.dtype == jnp.bfloat16
        assert found.shape == want.shape
        # What float32 sums of positive numbers are off by is small beside the rounding.
        np.testing.assert_array_less(np.abs(np.asarray(found, np.float64) - want), 1.01 * ROUNDING * want)


@pytest.mark.parametrize("masked", [False, True])
def test_an_adapted_bfloat16_sum_is_rounded_once(rng: np.random.Generator, masked: bool) -> None:
    """Beside it, what the adapter's rank holds is, and so is a masked input. Gradients of the adapter are float32."""
    tokens, width, features, scale = 1000, 600, 40, 0.05
    x, kernel, a, b, direction = (
        jnp.asarray(rng.uniform(0, 1, shape), jnp.bfloat16)
        for shape in ((tokens, width), (width, features), (width, RANK), (RANK, features), (tokens, features))
    )
    mask = draw_mask(rng, tokens, width) if masked else None
    arguments = (x, kernel, a.astype(jnp.float32), b.astype(jnp.float32), jnp.float32(scale))
    got = with_gradients(adapted_by(mask), 5)(direction, *arguments)
    want, base = exact_adapted(direction, *arguments, mask=mask), exact_product(direction, x, kernel)
    assert [part.dtype for part in got] == 3 * ["bfloat16"] + 3 * ["float32"]
    steps = 2 if masked else 1
    parts = [want[0] - base[0], want[1] - base[1], 0, *want[3:]]
    for number, (found, exact, part) in enumerate(zip(got, want, parts, strict=True)):
        whole = exact if number < 3 else 0
        bound = 1.02 * ROUNDING * (whole + steps * part)
        np.testing.assert_array_less(np.abs(np.asarray(found, np.float64) - exact), bound)
    for found in got[3:5]:
        assert (found != found.astype(jnp.bfloat16)).mean() > 0.5


@pytest.mark.parametrize("mapped", [(0,), (1,), (0, 1), (2,), (2, 3), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_under_vmap(rng: np.random.Generator, mapped: tuple[int, ...]) -> None:
    """Whatever of the arguments is mapped; samples of A with shared masks map A alone."""
    one = draw(rng)
    arguments = [np.stack([part, 2 * part, part - 1]) if number in mapped else part for number, part in enumerate(one)]
    direction = rng.normal(size=(3, 3, 4, FEATURES)).astype(np.float32)
    cases: list[tuple[Callable[..., jax.Array], int, int, Callable[..., Arrays]]] = [
        (merged_matmul, 5, 5, exact_adapted),
        (adapted_by(None), 5, 5, exact_adapted),
        (product, 2, 2, exact_product),
    ]
    for function, moved, count, exact in cases:
        axes = (0, *(0 if number in mapped else None for number in range(count)))
        got = jax.vmap(with_gradients(function, moved), in_axes=axes)(direction, *arguments[:count])
        for row in range(3):
            mine = [part[row] if number in mapped else part for number, part in enumerate(arguments[:count])]
            assert_close([part[row] for part in got], exact, direction[row], *mine)


def test_inside_of_a_scan_over_layers(rng: np.random.Generator) -> None:
    """Stacked weights, as the decoder's are: gradients for the factors of each layer, and for what goes in."""
    depth = 3
    layers = [draw(rng, width=FEATURES)[1:] for _ in range(depth)]
    stacked = [np.stack(parts) for parts in zip(*layers, strict=True)]
    x = rng.normal(size=(2, 3, FEATURES)).astype(np.float32)

    def through(layer: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def loss(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
            def advance(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
                return jnp.tanh(layer(x, *weights)), None

            return jnp.sum(jnp.square(jax.lax.scan(advance, x, (kernel, a, b, scale))[0]))

        return loss

    def by_product(x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        return product(x, kernel) + scale * product(product(x, a), b)

    want = jax.jit(jax.value_and_grad(through(plain), (0, 1, 2, 3, 4)))(x, *stacked)
    assert min(float(jnp.abs(part).max()) for part in want[1]) > 1e-3
    for layer in (merged_matmul, adapted_by(None), by_product):
        got = jax.jit(jax.value_and_grad(through(layer), (0, 1, 2, 3, 4)))(x, *stacked)
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_nothing_but_the_arguments_is_kept_for_the_gradient(rng: np.random.Generator) -> None:
    arguments = [jnp.asarray(part) for part in draw(rng)]
    for function, count in ((merged_matmul, 5), (product, 2)):
        _, pull = jax.vjp(function, *arguments[:count])
        mask = [leaf.shape for leaf in jax.tree.leaves(pull)]
        assert sorted(mask) == sorted(part.shape for part in arguments[:count])


def test_of_a_masked_input_the_mask_is_kept_for_the_gradient(rng: np.random.Generator) -> None:
    """Not what it leaves, and not as wide as the input where tokens share it; x A is small."""
    x, *weights = (jnp.asarray(part) for part in draw(rng))
    mask = draw_mask(rng, 3, 1, WIDTH)
    _, pull = jax.vjp(lambda x, mask, *weights: lora_matmul(x, mask, *weights), x, mask, *weights)
    arrays = [leaf for leaf in jax.tree.leaves(pull) if leaf.dtype != jax.dtypes.float0]
    want = [x.shape, mask.entries.shape, (3, 4, RANK), *(part.shape for part in weights)]
    assert sorted(leaf.shape for leaf in arrays) == sorted(want)


@pytest.mark.parametrize(
    ("dtype", "config", "precise"),
    [("float32", None, True), ("bfloat16", None, False), ("float32", "tensorfloat32", False)],
)
def test_float32_is_multiplied_as_such(rng: np.random.Generator, dtype: str, config: str | None, precise: bool) -> None:
    """On accelerators too, unless JAX was told otherwise. A fold is of float32 factors whatever the kernel's type."""
    x, kernel, a, b, scale = draw(rng)
    narrow = (jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
    calls: list[tuple[Callable[..., jax.Array], tuple[Any, ...]]] = [
        (product, narrow),
        (adapted_by(None), (*narrow, a, b, scale)),
    ]
    if dtype == "float32":
        calls += [(merged_matmul, (*narrow, a, b, scale)), (merged_kernel, (narrow[1], a, b, scale))]
    for function, arguments in calls:
        with jax.default_matmul_precision(config):
            value, pull = jax.vjp(function, *arguments)
            text = str(jax.make_jaxpr(function)(*arguments)) + str(jax.make_jaxpr(pull)(value))
        assert text.count("dot_general") >= 2
        assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == (
            text.count("dot_general") if precise else 0
        )


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fold_adds_the_scaled_product(rng: np.random.Generator, leading: tuple[int, ...], dtype: str) -> None:
    kernel, a, b, scale = (
        rng.normal(size=(*leading, *shape)) for shape in ((WIDTH, FEATURES), (WIDTH, RANK), (RANK, FEATURES), ())
    )
    got = merged_kernel(*(jnp.asarray(part, dtype if part is kernel else "float32") for part in (kernel, a, b, scale)))
    assert got.dtype == dtype
    want = kernel + scale[..., None, None] * a @ b
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=tolerance, atol=tolerance)
