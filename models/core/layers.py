"""Layers below the level of a block: products, norms, activations, dropout, embeddings.

Letters as in docs/notation.md. No function here knows the mesh: callers pass the `out` sharding that `place` returns.
"""

import functools
import hashlib
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from models.core.platform import on_one_cpu_device
from models.core.spec import Initializer, LazyLogits, Place, Spec, ones, zeros
from models.core.types import Inputs, OutSharding

MASK_VALUE = -1e30  # a masked logit: its softmax is 0; finite, so that 0 * MASK_VALUE is 0 in a gradient


def gather_weight(w: Float[Array, "..."], x: Array) -> Float[Array, "..."]:
    """All-gather a weight over the mesh axes that shard x's rows, which is FSDP made explicit.

    XLA's partitioner silently computed wrong gradients for a product whose operands are sharded by one mesh axis on
    different dims, on a mesh dp:2,fsdp:2,tp:2 (docs/decisions/0006). Without an explicit mesh, returns w.
    """
    spec = jax.typeof(w).sharding.spec
    rows = _axes(jax.typeof(x).sharding.spec[0])
    kept = PartitionSpec(*(None if rows & _axes(entry) else entry for entry in spec))
    return w if kept == spec else jax.sharding.reshard(w, kept)


def reshard(x: Array, out: OutSharding) -> Array:
    """x with the sharding `out`; x itself if `out` is None (no mesh)."""
    return x if out is None else jax.sharding.reshard(x, out)


def _axes(entry: str | tuple[str, ...] | None) -> set[str]:
    if isinstance(entry, tuple):
        return set(entry)
    return set() if entry is None else {entry}


def einsum(
    equation: str,
    x: Float[Array, "..."],
    w: Float[Array, "..."],
    out: OutSharding = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """Einsum of two operands in x's dtype, sharded as `out`; accumulated in and returned as `dtype` if given.

    A second operand without the axis `b` is a weight, and is gathered first (`gather_weight`).
    """
    w = w.astype(x.dtype) if "b" in equation.split(",")[1].split("->")[0] else gather_weight(w.astype(x.dtype), x)
    if "..." not in equation and on_one_cpu_device():
        if jax.typeof(x).sharding.mesh.empty:
            return _einsum_on_cpu(equation, (x, w), (None,) * 3, dtype)
        if isinstance(out, PartitionSpec):
            return _einsum_on_cpu(equation, (x, w), (*(jax.typeof(y).sharding.spec for y in (x, w)), out), dtype)
    return jnp.einsum(equation, x, w, out_sharding=out, preferred_element_type=dtype)


def _einsum_on_cpu(
    equation: str, operands: tuple[Array, Array], specs: tuple[PartitionSpec | None, ...], dtype: DTypeLike | None
) -> Array:
    """`jnp.einsum` with axes that are neighbours in every term as one axis: btd,dnh->btnh as bd,dn->bn.

    XLA's CPU backend copies the operands of a product that keeps or contracts several axes, and of its gradients.
    `specs` are those of the operands and the result.
    """
    terms = tuple(equation.replace("->", ",").split(","))
    size = dict(zip(terms[0] + terms[1], operands[0].shape + operands[1].shape, strict=True))
    merged, merged_size = list(terms), dict(size)
    for run in _neighbours(terms):
        merged = [term.replace(run, run[0]) for term in merged]
        merged_size[run[0]] = math.prod(size[axis] for axis in run)
    merged_specs = [
        spec if spec is None else PartitionSpec(*(spec[term.index(axis)] for axis in short))
        for spec, term, short in zip(specs, terms, merged, strict=True)
    ]

    def reshape(y: Array, term: str, size: dict[str, int], spec: PartitionSpec | None) -> Array:
        return y if len(term) == y.ndim else jax.lax.reshape(y, [size[axis] for axis in term], out_sharding=spec)

    flat = [reshape(y, merged[i], merged_size, merged_specs[i]) for i, y in enumerate(operands)]
    product = "{},{}->{}".format(*merged)
    y = jnp.einsum(product, *flat, out_sharding=merged_specs[2], preferred_element_type=dtype)
    return reshape(y, terms[2], size, specs[2])


@functools.cache
def _neighbours(terms: tuple[str, ...]) -> list[str]:
    """The axes of an einsum's terms, as one if they are neighbours in every term: btd dnh btnh -> bt d nh."""
    runs: list[str] = []
    for axis in dict.fromkeys("".join(terms)):
        pair = runs[-1][-1] + axis if runs else ""
        if pair and all((pair[0] in term) == (axis in term) == (pair in term) for term in terms):
            runs[-1] += axis
        else:
            runs.append(axis)
    return runs


def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """x [... D] + bias [D] -> [... D], in x's dtype; the bias may have several dims, x's last ones."""
    return x + jnp.expand_dims(bias.astype(x.dtype), tuple(range(x.ndim - bias.ndim)))


def linear(
    equation: str, x: Float[Array, "..."], p: dict[str, Array], out: OutSharding = None, dtype: DTypeLike | None = None
) -> Float[Array, "..."]:
    """`einsum` with p["kernel"], plus p["bias"] if there is one."""
    y = einsum(equation, x, p["kernel"], out, dtype)
    return add_bias(y, p["bias"]) if "bias" in p else y


def apply_scale(x: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """x [... D] * scale [D] -> [... D], in x's dtype; the scale may have several dims, x's last ones."""
    return x * jnp.expand_dims(scale.astype(x.dtype), tuple(range(x.ndim - scale.ndim)))


def linear_specs(fan_in: int, fan_out: int, axes: str, init: Initializer, out_axis: str = "norm") -> dict[str, Spec]:
    """Specs of y = x @ kernel + bias; `axes` names the kernel's two dims, `out_axis` that of the bias."""
    return {
        "kernel": Spec((fan_in, fan_out), axes, init, fan_in=axes.split()[0]),
        "bias": Spec((fan_out,), out_axis, zeros),
    }


def dense(
    x: Float[Array, "b i"], p: dict[str, Array], out: OutSharding = None, dtype: DTypeLike | None = None
) -> Float[Array, "b o"]:
    """x [B I] @ kernel [I O] + bias [O] -> [B O], in x's dtype, or in `dtype` if given."""
    return add_bias(einsum("bi,io->bo", x, p["kernel"], out, dtype), p["bias"])


def norm_specs(width: int, stack: tuple[int, ...] = (), bias: bool = True) -> dict[str, Spec]:
    """Specs of a normalisation with scale and optional bias; `stack` is (layers,) if layers are stacked."""
    axes = "layers norm" if stack else "norm"
    shift = {"bias": Spec((*stack, width), axes, zeros)} if bias else {}
    return {"scale": Spec((*stack, width), axes, ones), **shift}


def stats_specs(width: int, stack: tuple[int, ...] = ()) -> dict[str, Spec]:
    """Specs of the running mean and variance of a batch norm, or of a stack of them: [L D] or [D]."""
    axes = "layers norm" if stack else "norm"
    return {"mean": Spec((*stack, width), axes, zeros), "var": Spec((*stack, width), axes, ones)}


def layer_norm(x: Float[Array, "*b d"], p: dict[str, Array], eps: float) -> Float[Array, "*b d"]:
    """Normalise the last dim to mean 0, variance 1, scale, and add an optional bias, in float32: [... D] -> [... D].

    Source: Ba, Kiros, Hinton 2016, arXiv:1607.06450, eq. 3.
    """
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, -1, keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), -1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + eps)
    y = apply_scale(y, p["scale"])
    return (add_bias(y, p["bias"]) if "bias" in p else y).astype(x.dtype)


def rms_norm(x: Float[Array, "*b d"], scale: Float[Array, "d"] | None, eps: float) -> Float[Array, "*b d"]:
    """Divide the last dim by its root mean square, in float32, then scale: x [... D], scale [D] or None -> [... D].

    Source: Zhang, Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)
    y = y.astype(x.dtype)
    return y if scale is None else apply_scale(y, scale)


@jax.custom_jvp
def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of GELU; the forward pass saves the derivative, which spares a second tanh.

    Source: Hendrycks, Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return _gelu_tanh(x)[0]


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    root = math.sqrt(2 / math.pi)
    t = jnp.tanh(root * (x + 0.044715 * x * x * x))
    slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x)
    return 0.5 * x * (1 + t), slope


@gelu_tanh.defjvp
def _gelu_tanh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, slope = _gelu_tanh(primals[0])
    return y, tangents[0] * slope


def scaled_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1.7159 tanh(2x/3), which maps +-1 to +-1 (LeCun et al. 1998, Gradient-based learning, appendix A)."""
    return 1.7159 * jnp.tanh(x * (2 / 3))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "scaled_tanh": scaled_tanh,
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": gelu_tanh,
}


def embed(table: Float[Array, "v d"], ids: Int[Array, "*b"], out: OutSharding = None) -> Float[Array, "*b d"]:
    """Look up rows of a table: table [V D], ids [...] -> [... D]."""
    return gather_weight(table, ids).at[ids].get(out_sharding=out)


def embed_tokens(table: Float[Array, "v d"], inputs: Inputs, out: OutSharding = None) -> Float[Array, "b t d"]:
    """The rows of a table for the inputs' `tokens` [B T], or their `embeds` [B T D] in place of these -> [B T D]."""
    if "embeds" in inputs:
        return reshard(inputs["embeds"], out)
    return embed(table, inputs["tokens"], out)


def sequence_shape(inputs: Inputs) -> tuple[int, int]:
    """Rows and time of the inputs' `tokens` or `embeds`: B, T."""
    B, T, *_ = inputs["embeds" if "embeds" in inputs else "tokens"].shape
    return B, T


def shift_left(x: Shaped[Array, "b t"], count: int, place: Place) -> Shaped[Array, "b t"]:
    """Shift left by `count` along time, with 0 at the end: x [B T] -> [B T]."""
    gathered = reshard(x, place("batch query"))
    return reshard(jnp.pad(gathered[:, count:], ((0, 0), (0, min(count, x.shape[1])))), place("batch seq"))


def softcap(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """cap tanh(x / cap), which lies within +-cap: [...] -> [...]. Source: Bello et al. 2016, arXiv:1611.09940."""
    return cap * jnp.tanh(x / cap)


def compute_logits(value: LazyLogits, out: OutSharding = None) -> Float[Array, "b t v"]:
    """Logits over the padded vocabulary, float32; those of padding are MASK_VALUE -> [B T V]."""
    size = value.table.shape[0]
    logits = einsum("btd,vd->btv", value.x, value.table, out, jnp.float32)
    logits = logits if value.bias is None else add_bias(logits, value.bias)
    logits = logits if value.softcap is None else softcap(logits, value.softcap)
    if size == value.vocab:
        return logits
    real = jnp.arange(size) < value.vocab
    return jnp.where(real[None, None], logits, MASK_VALUE)


def site_hash(site: str) -> int:
    """A 32-bit hash of the name of a site that draws random numbers."""
    return int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "little")


def per_row_keys(key: Key[Array, ""], rows: Int[Array, "b"]) -> Key[Array, "b"]:
    """One key per example, from the step's key and the example's global row index: key [], rows [B] -> [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_in_each(keys: Key[Array, "b"] | None, number: Int[Array, ""]) -> Key[Array, "b"] | None:
    """Fold a number, as a layer's index, into each row's key: keys [B] -> [B]; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(
    x: Float[Array, "b *d"], keys: Key[Array, "b"] | None, rate: float, site: str, out: OutSharding = None
) -> Float[Array, "b *d"]:
    """Zero elements with probability `rate` and scale the rest, with one key per row: x [B ...] -> [B ...].

    Returns x if `keys` is None or `rate` is 0. Source: Srivastava et al. 2014, JMLR 15.
    """
    if keys is None or rate == 0:
        return x

    def mask(key: Key[Array, ""]) -> Bool[Array, "..."]:
        return jax.random.bernoulli(jax.random.fold_in(key, site_hash(site)), 1 - rate, x.shape[1:])

    keep = jax.vmap(mask)(keys)
    keep = reshard(keep, out)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def drop_path(
    x: Float[Array, "b *d"], keys: Key[Array, "b"] | None, rate: Float[Array, ""], site: str
) -> Float[Array, "b *d"]:
    """Drop a row's residual branch with probability `rate`, and scale the rest: x [B ...] -> [B ...].

    Source: stochastic depth, Huang et al. 2016, arXiv:1603.09382, eq. 2; scaled in training, hence not in inference.
    """
    if keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site_hash(site)), 1 - rate))(keys)
    return x * (keep / (1 - rate)).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
