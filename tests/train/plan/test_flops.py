"""FLOPs counted from a jaxpr."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import models
from train.plan import flops

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 4 * 8 * 8


def hidden(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(jnp.einsum("bi,io->bo", x, w))


def test_flops_of_products() -> None:
    """Two for each multiply and add, also with batch dims; elementwise work is not counted."""
    assert flops.count(hidden, X, W) == PRODUCT
    q = jax.ShapeDtypeStruct((2, 5, 3, 7), jnp.float32)
    k = jax.ShapeDtypeStruct((2, 6, 3, 7), jnp.float32)
    assert flops.count(lambda q, k: jnp.einsum("btnh,bsnh->bnts", q, k), q, k) == 2 * (2 * 3 * 5 * 6) * 7
    assert flops.count(jnp.sin, X) == 0


def test_flops_of_loops_are_multiplied() -> None:
    """A scan's body counts once a turn, also nested."""

    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (hidden(x, w), None), x, length=5)[0]

    assert flops.count(scanned, X, W) == 5 * PRODUCT
    nested = lambda x, w: jax.lax.scan(lambda x, _: (scanned(x, w), None), x, length=3)[0]  # noqa: E731
    assert flops.count(nested, X, W) == 15 * PRODUCT


def test_flops_of_a_branch_are_the_dearest() -> None:
    """Of a cond the larger branch counts."""
    chosen = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: hidden(hidden(x, w), w), lambda: hidden(x, w))  # noqa: E731
    assert flops.count(chosen, X, W) == 2 * PRODUCT


def test_flops_on_shards_are_of_all_devices() -> None:
    """What each device computes of a product by itself adds up to the product."""
    mesh, rows = jax.make_mesh((4,), ("dp",)), jax.sharding.PartitionSpec("dp")
    cut = jax.shard_map(hidden, mesh=mesh, in_specs=(rows, jax.sharding.PartitionSpec()), out_specs=rows)
    with jax.set_mesh(mesh):
        x, w = (jnp.zeros(s.shape) for s in (X, W))
        assert flops.count(cut, jax.device_put(x, jax.NamedSharding(mesh, rows)), w) == PRODUCT


@pytest.mark.parametrize("groups", [1, 2])
def test_flops_of_a_convolution(groups: int) -> None:
    """Each output element costs a kernel's products over its group's channels."""
    image = jax.ShapeDtypeStruct((2, 8, 9, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 4 // groups, 6), jnp.float32)

    def conv(x: jax.Array, k: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=groups)

    assert flops.count(conv, image, kernel) == 2 * (2 * 6 * 7 * 6) * (3 * 3 * 4 // groups)


def test_flops_inside_jit_gradients_and_remat() -> None:
    """Whatever wraps a product, it is counted as often as it runs: forward, two backward, and again under remat."""
    assert flops.count(jax.jit(jax.jit(hidden)), X, W) == PRODUCT

    def slope(f: Any) -> Any:
        return jax.grad(lambda x, w: jnp.sum(f(f(x, w), w)), argnums=1)

    assert flops.count(slope(hidden), X, W) == (2 + 3) * PRODUCT  # the first layer needs no gradient of its input
    assert flops.count(jax.jit(slope(jax.checkpoint(hidden))), X, W) == (2 + 2 + 3) * PRODUCT


def test_flops_of_a_scanned_model_are_those_of_an_unrolled_one() -> None:
    """A GPT costs the same whether its layers are looped or not, and what its products say."""
    sizes = {"vocab": 64, "vocab_multiple": 64, "context": 8, "width": 16, "heads": 2}
    tokens = jnp.zeros((1, 8), jnp.int32)

    def cost(**more: Any) -> int:
        model = models.build("gpt", **sizes, **more)
        return flops.count(lambda v: model.predict(v, tokens), jax.eval_shape(model.init, jax.random.key(0)))

    assert cost(depth=3) == cost(depth=3, scan=False)
    layer = 2 * 8 * (12 * 16 * 16) + 2 * 2 * (8 * 8 * 16)  # kernels; scores and their sums over the whole square
    assert cost(depth=3) - cost(depth=2) == layer
    assert cost(depth=1) == layer + 2 * 8 * 16 * 64
