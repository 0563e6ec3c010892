"""Computation of a token's experts, by one of two methods with equal results.

Legend: B batch, T time, D width, F an expert's hidden, E experts, A experts per token.

Neither drops tokens, so there is no capacity factor:

- `dense`: every expert computes every token; outputs that were not chosen have weight 0. For tests, and few experts.
- `dropless`: tokens are sorted by expert, and each expert multiplies its own rows, as in Gale et al. 2022,
  arXiv:2211.15841. With the mesh axis ep, a device holds some of the experts, gathers the tokens of all devices along
  that axis, and scatters the summed outputs back.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from errors import UsageError
from models.blocks.moe.ragged import gather_rows, grouped_product
from models.blocks.moe.routers import Routes, one_hot
from models.core.layers import ACTIVATIONS, add_bias, einsum, gather_weight, reshard
from models.core.spec import Place, unsharded
from models.core.types import Params

DISPATCH = ("dropless", "dense")

Gate = Callable[[Array, Array], Array]  # (gate, up) -> hidden, each [... F]


def glu(activation: str) -> Gate:
    """The gate of a gated linear unit: activation(gate) * up, as in `gated_mlp`."""
    return lambda gate, up: ACTIVATIONS[activation](gate) * up


def mixture(
    x: Float[Array, "b t d"],
    routes: Routes,
    p: Params,
    gate: Gate,
    *,
    dispatch: str = "dropless",
    weight_inputs: bool = False,
    place: Place = unsharded,
) -> tuple[Float[Array, "b t d"], Bool[Array, "b t a"]]:
    """Weighted sum of each token's experts: x [B T D] -> [B T D], and which choices were computed [B T A].

    `p` are the parameters under `experts` in `expert_specs`, of one layer. With `weight_inputs` the weights multiply
    the experts' inputs instead of their outputs. The sum is in float32.
    """
    run = {"dropless": _dropless, "dense": _dense}[dispatch]
    weights = routes.weights
    y, dispatched = run(x, routes.experts, weights, p, gate, weight_inputs, place)
    if "bias" in p["down"]:
        computed = dispatched.astype(jnp.float32) * (1 if weight_inputs else weights)
        bias_weights = jnp.sum(one_hot(routes.experts, len(p["down"]["bias"])) * computed[..., None], 2)
        y = y + einsum("bte,ed->btd", bias_weights, p["down"]["bias"], place("batch seq width"))
    return y.astype(x.dtype), dispatched


def _dense(
    x: Array, experts: Array, weights: Array, p: Params, gate: Gate, weight_inputs: bool, place: Place
) -> tuple[Array, Array]:
    """All experts compute all tokens."""
    chosen = one_hot(experts, len(p["gate"]["kernel"]))
    expert_weights = jnp.sum(chosen * weights[..., None], 2)
    output_weights = jnp.any(chosen, 2).astype(jnp.float32) if weight_inputs else expert_weights

    def up_project(p: dict[str, Array]) -> Array:
        h = einsum("btd,edf->btef", x, p["kernel"], place("batch seq choice mlp"))
        h = h * expert_weights[..., None].astype(h.dtype) if weight_inputs else h
        return add_bias(h, gather_weight(p["bias"], x)) if "bias" in p else h

    h = gate(up_project(p["gate"]), up_project(p["up"])) * output_weights[..., None].astype(x.dtype)
    y = einsum("btef,efd->btd", h, p["down"]["kernel"], place("batch seq width"), jnp.float32)
    return y, jnp.any(chosen, -1)


def _dropless(
    x: Array, experts: Array, weights: Array, p: Params, gate: Gate, weight_inputs: bool, place: Place
) -> tuple[Array, Array]:
    """Each expert computes its own tokens, on the devices that hold it."""
    p = jax.tree.map(lambda w: w.astype(x.dtype), {**p, "down": {"kernel": p["down"]["kernel"]}})
    local = partial(_grouped_experts, gate=gate, weight_inputs=weight_inputs)
    x_spec = place("batch seq width")
    if x_spec is None:
        run = partial(local, first=jnp.zeros((), jnp.int32))
        mesh = jax.typeof(x).sharding.mesh
        if mesh.explicit_axes:  # arrays on a mesh without a place: replicated, as sorting infers no sharding
            replicated = jax.sharding.PartitionSpec()
            run = jax.shard_map(run, mesh=mesh, in_specs=replicated, out_specs=replicated, check_vma=False)
        return run(x, experts, weights, p)

    def axes(name: str) -> tuple[str, ...]:
        (entry,) = place(name) or (None,)
        return entry if isinstance(entry, tuple) else (entry,) if entry else ()

    expert_axes, mlp_axes = axes("experts"), axes("mlp")
    # Along gather_axes devices hold other experts and other rows; along sum_axes other experts, or parts of them, for
    # the same rows.
    gather_axes = tuple(a for a in expert_axes if a in axes("batch"))
    sum_axes = tuple(a for a in (*expert_axes, *mlp_axes) if a not in gather_axes)
    conflicts = set(sum_axes) & set(axes("seq")) | set(axes("width"))
    if conflicts:
        raise UsageError(
            f"train.dispatch=dropless: the mesh axis {min(conflicts)!r} cannot shard width, nor time together with "
            f"experts or their hidden; change a rule of width, seq, experts or mlp, or set train.dispatch=dense"
        )

    def on_device(x: Array, experts: Array, weights: Array, p: Params) -> tuple[Array, Array]:
        first = jnp.asarray(jax.lax.axis_index(expert_axes) if expert_axes else 0) * len(p["gate"]["kernel"])
        if gather_axes:
            x, experts, weights = (jax.lax.all_gather(v, gather_axes, tiled=True) for v in (x, experts, weights))
        y, dispatched = local(x, experts, weights, p, first)
        count = dispatched.astype(jnp.int32)
        if sum_axes:
            y, count = (jax.lax.psum(v, sum_axes) for v in (y, count))
        if gather_axes:
            y, count = (jax.lax.psum_scatter(v, gather_axes, tiled=True) for v in (y, count))
        return y, count > 0

    kernels = {"gate": "experts width mlp", "up": "experts width mlp", "down": "experts mlp width"}
    weight_specs = {}
    for name, parts in p.items():
        weight_specs[name] = dict.fromkeys(parts, place("experts mlp")) | {"kernel": place(kernels[name])}
    choice_spec = place("batch seq choice")
    specs = (x_spec, choice_spec, choice_spec, weight_specs)
    mapped = jax.shard_map(on_device, in_specs=specs, out_specs=(x_spec, choice_spec), check_vma=False)
    return mapped(*jax.tree.map(reshard, (x, experts, weights, p), specs))


def _grouped_experts(
    x: Array, experts: Array, weights: Array, p: Params, first: Array, *, gate: Gate, weight_inputs: bool
) -> tuple[Array, Array]:
    """Run this device's experts, numbered from `first`: x [B T D], experts weights [B T A] -> [B T D], [B T A].

    Choices are sorted by expert; those of other devices' experts come last, where the product is 0.
    """
    B, T, A = experts.shape
    count = len(p["gate"]["kernel"])
    local_expert = experts.reshape(-1) - first
    local_expert = jnp.where((local_expert >= 0) & (local_expert < count), local_expert, count)
    order = jnp.argsort(local_expert)
    inverse = jnp.argsort(order)
    sizes = jnp.sum(local_expert[None] == jnp.arange(count)[:, None], 1, dtype=jnp.int32)

    def by_group(h: Array, p: dict[str, Array]) -> Array:
        y = grouped_product(h, p["kernel"], sizes)
        return y + p["bias"].at[local_expert[order]].get(mode="fill", fill_value=0) if "bias" in p else y

    h = gather_rows(x.reshape(B * T, -1), order // A, inverse.reshape(B * T, A))
    if weight_inputs:
        h = h * gather_rows(weights.reshape(-1, 1), order, inverse[:, None]).astype(h.dtype)
    y = by_group(gate(by_group(h, p["gate"]), by_group(h, p["up"])), p["down"])
    y = gather_rows(y, inverse, order[:, None]).reshape(B, T, A, -1).astype(jnp.float32)
    return jnp.sum(y if weight_inputs else y * weights[..., None], 2), (local_expert < count).reshape(B, T, A)
