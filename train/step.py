"""One update, pure: (state, batch) -> (state, metrics), jitted and donated.

state is a plain dict {step, seed, params, stats, opt}. Randomness comes from (seed, step, global row) alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import auto_axes, reshard

from models import Model
from models.layers import row_keys, site_hash
from models.spec import abstract, draw
from train.losses import Task
from train.mesh import Placement

State = dict[str, Any]
Batch = dict[str, jax.Array]


def stream_key(seed: jax.Array | int, name: str) -> jax.Array:
    """The PRNG key of one use of randomness: seed, `params` or `train` -> key []."""
    return jax.random.fold_in(jax.random.key(seed), site_hash(name))


def init_state(model: Model, tx: optax.GradientTransformation, seed: int, dtype: Any) -> State:
    """The state before the first update; to be run under jit. Parameters are drawn in float32, then cast to `dtype`."""
    variables = draw(model.specs, stream_key(seed, "params"))
    params = jax.tree.map(lambda p: p.astype(dtype), variables["params"])
    return {
        "step": jnp.zeros((), jnp.int32),
        "seed": jnp.asarray(seed, jnp.uint32),
        "params": params,
        "stats": variables.get("stats", {}),
        "opt": tx.init(params),
    }


def state_shardings(model: Model, tx: optax.GradientTransformation, place: Placement, dtype: Any) -> State:
    """NamedShardings of the state: the optimizer's moments lie as their parameters do, all else is replicated."""
    params = place.shardings(model.specs["params"])
    opt = jax.eval_shape(tx.init, abstract(model.specs["params"], dtype))
    return {
        "step": place.whole,
        "seed": place.whole,
        "params": params,
        "stats": place.shardings(model.specs.get("stats", {})),
        "opt": optax.tree.map_params(tx, lambda _, s: s, opt, params, transform_non_params=lambda _: place.whole),
    }


def fresh_state(model: Model, tx: optax.GradientTransformation, place: Placement, seed: int, dtype: Any) -> State:
    """`init_state` on the mesh."""
    shardings = state_shardings(model, tx, place, dtype)
    return jax.jit(partial(init_state, model, tx, seed, dtype), out_shardings=shardings)()


def split_rows(batch: Batch, parts: int, place: Placement) -> Batch:
    """Microbatches of interleaved rows, i, i+M, i+2M … of M = parts, so that no data moves: [B ...] -> [M B/M ...]."""

    def one(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return {k: auto_axes(one, out_sharding=place(f"layers {batch_axes(k, x.ndim)}"))(x) for k, x in batch.items()}


SEQUENCES = {"tokens", "targets", "weight", "bytes", "position", "segment"}  # fields whose second dim is time


def batch_axes(field: str, ndim: int) -> str:
    """Axis names of a batch's field: rows first, then time where the field is a sequence."""
    second = "seq" if field in SEQUENCES else "width"
    return " ".join(("batch", second, *["width"] * ndim)[:ndim])


def make_step(
    model: Model,
    task: Task,
    tx: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    place: Placement,
    dtype: Any,
    accumulate: int = 1,
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The jitted update. A non-finite loss or gradient leaves all but `step` as it was, and sets `skipped` to 1."""
    shardings = state_shardings(model, tx, place, dtype)

    def loss(params: Any, stats: Any, batch: Batch, keys: jax.Array, total: jax.Array) -> tuple[jax.Array, Any]:
        fields = {k: v for k, v in batch.items() if k != "row"}
        out = model.apply({"params": params, "stats": stats}, fields, train=True, key=keys, place=place)
        terms = {name: jnp.stack([jnp.sum(s), jnp.sum(w)]) for name, (s, w) in task(out.value, fields).items()}
        return terms["loss"][0] / total, (terms, out.stats if stats else stats)

    def gradient(state: State, batch: Batch) -> tuple[Any, Any, Any]:
        key = jax.random.fold_in(stream_key(state["seed"], "train"), state["step"])
        rows = reshard(jnp.arange(batch["weight"].shape[0]), place("batch"))
        total = jnp.sum(batch["weight"])
        grad = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            grads, (terms, stats) = grad(state["params"], state["stats"], batch, row_keys(key, rows), total)
            return grads, terms, stats

        def micro(carry: Any, part: Batch) -> tuple[Any, Any]:
            grads, stats = carry
            more, (terms, stats) = grad(state["params"], stats, part, row_keys(key, part["row"]), total)
            return (jax.tree.map(jnp.add, grads, more), stats), terms

        parts = split_rows({**batch, "row": rows}, accumulate, place)
        start = jax.tree.map(jnp.zeros_like, state["params"]), state["stats"]
        (grads, stats), terms = jax.lax.scan(micro, start, parts)
        return grads, jax.tree.map(lambda t: jnp.sum(t, 0), terms), stats

    out_shardings = jax.tree.map(lambda s: s.spec, (shardings["params"], shardings["opt"]))
    update = auto_axes(lambda g, o, p: tx.update(g, o, p), out_sharding=out_shardings)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        grads, terms, stats = gradient(state, batch)
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        value = terms["loss"][0] / terms["loss"][1]
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt = update(grads, state["opt"], state["params"])
        lr = rate(state["step"])
        params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), state["params"], updates)
        new = {"params": params, "stats": stats, "opt": opt}
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {k: state[k] for k in new})
        metrics = {name: t[0] / t[1] for name, t in terms.items()}
        metrics.update(grad_norm=norm, lr=lr, skipped=1 - finite.astype(jnp.float32))
        return {**kept, "step": state["step"] + 1, "seed": state["seed"]}, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, place.whole))
