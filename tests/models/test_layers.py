"""Shared layers against Flax Linen and PyTorch, forward and backward."""

import re
from contextlib import nullcontext
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.blocks.attention import attention
from models.blocks.attention.mask import AttentionMask
from models.blocks.vision import convolution
from models.core import layers, spec
from models.core.batch_norm import batch_norm
from models.core.gradients import plain_gradients
from models.core.spec import flatten
from models.families import cnn
from tests.support.cases import random_variables

DRAW = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(DRAW.normal(size=shape).astype(np.float32))


def assert_same(ours, theirs, *arguments: jax.Array) -> None:
    """Value and every gradient agree to 2e-5."""
    which = tuple(range(len(arguments)))

    def found(f):
        def total(*a):
            value = f(*a)
            return jnp.sum(jnp.sin(value)), value

        return jax.value_and_grad(total, which, has_aux=True)

    (got, grads), (want, wanted) = jax.jit(lambda *a: [found(f)(*a) for f in (ours, theirs)])(*arguments)
    for a, b in zip((got[1], *grads), (want[1], *wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_layer_norm_is_linens() -> None:
    def theirs(x, scale, bias):
        return nn.LayerNorm(epsilon=1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)

    with jax.numpy_rank_promotion("allow"):
        assert_same(
            lambda x, s, b: layers.layer_norm(x, {"scale": s, "bias": b}, 1e-5),
            theirs,
            normal(3, 5, 8),
            normal(8),
            normal(8),
        )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_conv_is_linens(padding: str) -> None:
    def theirs(x, kernel):
        return nn.Conv(6, (3, 3), padding=padding, use_bias=False).apply({"params": {"kernel": kernel}}, x)

    assert_same(lambda x, k: convolution.conv(x, k, padding), theirs, normal(2, 7, 7, 4), normal(3, 3, 4, 6))


def test_attention_is_jaxs() -> None:
    mask = AttentionMask(jnp.arange(6)[None], jnp.arange(6)[None])

    def ours(q, k, v):
        return attention.attention(q, k, v, mask, scale=8**-0.5)

    def theirs(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    assert_same(ours, theirs, normal(2, 6, 3, 8), normal(2, 6, 3, 8), normal(2, 6, 3, 8))


def test_segments_do_not_see_each_other() -> None:
    model = models.build("gpt", vocab=50, context=12, width=16, depth=1, heads=2)
    variables, tokens, predict = random_variables(model), np.arange(12)[None], jax.jit(model.predict)
    position = np.array([[*range(5), *range(7)]])
    segment = np.array([[0] * 5 + [1] * 7])
    packed = predict(variables, {"tokens": tokens, "segment": segment, "position": position})
    alone = predict(variables, tokens[:, 5:])
    np.testing.assert_allclose(packed[:, 5:], alone, rtol=2e-5, atol=2e-5)


def test_gelu_is_jaxs() -> None:
    x = jnp.linspace(-6, 6, 101)
    assert_same(layers.gelu_tanh, lambda y: jax.nn.gelu(y, approximate=True), x)


def test_dropout_keeps_the_mean_and_is_drawn_a_row() -> None:
    def run(key):
        keys, x = layers.per_row_keys(key, jnp.arange(4)), jnp.ones((4, 10_000))
        few = layers.dropout(x[2:], keys[2:], 0.25, "here")
        return layers.dropout(x, keys, 0.25, "here"), few, layers.dropout(x, keys, 0.25, "there")

    y, few, there = jax.device_get(jax.jit(run)(jax.random.key(0)))
    assert abs(np.mean(y) - 1) < 0.02
    assert set(np.unique(y).tolist()) == {0.0, float(np.float32(1 / 0.75))}
    np.testing.assert_array_equal(few, y[2:])
    assert (there != y).any()


def test_batch_norm_is_torchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    x, scale, bias, mean, var = normal(4, 5, 5, 3), normal(3), normal(3), normal(3), jnp.asarray(np.square(normal(3)))
    norm = torch.nn.BatchNorm2d(3, momentum=0.1)
    with torch.no_grad():
        for to, value in ((norm.weight, scale), (norm.bias, bias), (norm.running_mean, mean), (norm.running_var, var)):
            to.copy_(torch.tensor(np.asarray(value)))
    image = torch.tensor(np.asarray(x).transpose(0, 3, 1, 2), requires_grad=True)
    want = norm(image)
    torch.sin(want).sum().backward()
    stats = {"mean": mean, "var": var}

    def ours(x, s, b):
        how, p = dict(momentum=0.9, eps=1e-5), {"scale": s, "bias": b}
        y, moved = batch_norm(x, p, stats, train=True, **how)
        return jnp.sum(jnp.sin(y)), (y, moved, batch_norm(x, p, moved, train=False, **how)[0])

    (_, (y, moved, still)), grads = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(x, scale, bias)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)  # noqa: E731
    close(y, want.detach().numpy().transpose(0, 2, 3, 1))
    close(moved["mean"], norm.running_mean.numpy())
    close(moved["var"], norm.running_var.numpy())
    close(grads[0], image.grad.numpy().transpose(0, 2, 3, 1))
    close(grads[1], norm.weight.grad.numpy())
    close(grads[2], norm.bias.grad.numpy())
    norm.eval()
    close(still, norm(image).detach().numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_batch_norm_is_that_of_jax(dtype: Any, outside: bool) -> None:
    """Also of channels with a mean far from 0, and of one that is constant."""
    x = (normal(4, 5, 5, 3) + jnp.array([[[[0, 30, 0]]]])).at[..., 2].set(0.5).astype(dtype)
    scale, bias = normal(2, 3)
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def loss(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        how: Any = dict(
            train=True, momentum=0.9, eps=0.1, eps_outside_sqrt=outside
        )  # a constant channel is divided by it
        y, moved = batch_norm(x, {"scale": scale, "bias": bias}, stats, **how)
        return jnp.sum(jnp.sin(y.astype(jnp.float32) + x.astype(jnp.float32))) + sum(jnp.sum(v) for v in moved.values())

    written = jax.grad(loss, (0, 1, 2))(x, scale, bias)
    with plain_gradients():
        derived = jax.grad(loss, (0, 1, 2))(x, scale, bias)
    for a, b in zip(written, derived, strict=True):
        assert a.dtype == b.dtype
        tolerance = 2e-5 if a.dtype == jnp.float32 else 2**-7
        size = float(jnp.abs(b.astype(jnp.float32)).max())
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=tolerance, atol=tolerance * size)


def test_lenets_links_are_the_papers_table() -> None:
    assert [len(maps) for maps in cnn.LINKS] == [3] * 6 + [4] * 9 + [6]
    kernel = cnn.dense_kernel(jnp.ones((5, 5, 60)))
    assert kernel.shape == (5, 5, 6, 16)
    assert kernel.sum() == 60 * 25
    np.testing.assert_array_equal(kernel[0, 0].sum(1), [10.0] * 6)  # each map of S2 feeds ten of C3


def test_rbf_scores_are_minus_squared_distances_to_the_codes() -> None:
    bits = (np.array(cnn.CODES)[:, :, None] >> np.arange(6, -1, -1)) & 1
    codes = bits.reshape(10, 84) * 2.0 - 1
    x = normal(3, 84)
    want = -np.square(np.asarray(x)[:, None] - codes[None]).sum(-1)
    np.testing.assert_allclose(cnn.rbf(x), want / cnn.TEMPERATURE, rtol=1e-5)
    assert len({tuple(c) for c in codes.tolist()}) == 10


def test_gpt_is_gpt2() -> None:
    """Logits and every gradient of a GPT-2 written in torch alone, its parameters all drawn, norms and biases too."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    T, V, D, N, L = 12, 40, 24, 4, 3
    model = models.build("gpt", vocab=V, vocab_multiple=1, context=T, width=D, depth=L, heads=N)
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda s: np.float32(draw.normal(size=s.shape) * 0.3), model.specs["params"])
    tokens = draw.integers(0, V, (2, T))
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), params)
    functional = torch.nn.functional

    def norm(x, p, i=...):
        return functional.layer_norm(x, (D,), p["scale"][i], p["bias"][i], 1e-5)

    x = p["embed"]["token"][tokens] + p["embed"]["position"][:T]
    for i in range(L):
        blocks = p["blocks"]
        h = norm(x, blocks["norm1"], i)
        kernel, bias = blocks["qkv"]["kernel"][i], blocks["qkv"]["bias"][i]
        q, k, v = (torch.tensordot(h, kernel[n], 1) + bias[n] for n in range(3))  # [B T N H]
        a = functional.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True)
        x = x + a.transpose(1, 2).flatten(2) @ blocks["out"]["kernel"][i].flatten(0, 1) + blocks["out"]["bias"][i]
        h = norm(x, blocks["norm2"], i) @ blocks["up"]["kernel"][i] + blocks["up"]["bias"][i]
        x = x + functional.gelu(h, approximate="tanh") @ blocks["down"]["kernel"][i] + blocks["down"]["bias"][i]
    theirs = norm(x, p["norm"]) @ p["embed"]["token"].T
    torch.sin(theirs).sum().backward()

    def ours(params):
        logits = model.predict({"params": params}, tokens)
        return jnp.sum(jnp.sin(logits)), logits

    (total, logits), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(total, torch.sin(theirs).sum().item(), rtol=2e-4)
    want = theirs.detach().numpy()
    assert np.linalg.norm(logits - want) <= 2e-5 * np.linalg.norm(want)
    for name, g in flatten(grads).items():
        leaf = p
        for part in name.split("/"):
            leaf = leaf[part]
        error = np.linalg.norm(g - leaf.grad.numpy())
        assert error <= 2e-4 * np.linalg.norm(leaf.grad.numpy()), name


def test_initial_deviations_are_the_laws() -> None:
    shape = (400, 300)
    for law, want in ((spec.lecun_normal, 400**-0.5), (spec.he_normal, (2 / 400) ** 0.5), (spec.normal(0.02), 0.02)):
        leaf = spec.Spec(shape, "embed mlp", law, fan_in="embed")
        drawn = np.asarray(law(jax.random.key(0), shape, leaf))
        assert abs(drawn.mean()) < 0.01 * want
        np.testing.assert_allclose(drawn.std(), want, rtol=0.01)
    flat = np.asarray(spec.uniform(0.5)(jax.random.key(0), shape, spec.Spec(shape, "embed mlp", spec.zeros)))
    np.testing.assert_allclose([flat.min(), flat.max(), flat.std()], [-0.5, 0.5, 0.5 / 3**0.5], rtol=0.01)


PRODUCTS = [  # equation, sizes of the operands
    ("btd,dnh->btnh", (2, 3, 4), (4, 2, 5)),
    ("btnh,nhd->btd", (2, 3, 2, 5), (2, 5, 4)),
    ("bnts,bsnh->btnh", (2, 3, 4, 5), (2, 5, 3, 6)),
    ("b...i,io->b...o", (2, 3, 4), (4, 5)),
]


@pytest.mark.parametrize("meshed", [False, True])
@pytest.mark.parametrize(("equation", "left", "right"), PRODUCTS)
def test_a_product_is_einsums(equation: str, left: tuple[int, ...], right: tuple[int, ...], meshed: bool) -> None:
    """Also on a mesh of one device, whose axis the rows name; each product and gradient contracts few axes."""
    x, w = normal(*left), normal(*right)
    mesh = jax.make_mesh((1,), ("dp",), devices=jax.devices()[:1])
    out = jax.sharding.PartitionSpec("dp", *[None] * (len(equation.split("->")[1].replace("...", ".")) - 1))

    def total(x: jax.Array, w: jax.Array, product=layers.einsum) -> jax.Array:
        return jnp.sum(jnp.sin(product(equation, x, w, *([out] if meshed and product is layers.einsum else []))))

    want = jax.value_and_grad(partial(total, product=jnp.einsum), (0, 1))(x, w)
    with jax.set_mesh(mesh) if meshed else nullcontext():
        spec = jax.sharding.PartitionSpec("dp")
        rows = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec)) if meshed else x
        found = jax.jit(jax.value_and_grad(total, (0, 1)))(rows, w)
        traced = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(rows, w))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, want)
    contracted = re.findall(r"dimension_numbers=\(\(\[([\d, ]*)\]", traced)
    assert contracted
    assert equation.startswith("b...") or all(len(axes.split(",")) == 1 for axes in contracted)
