"""One update as a pure function: (state, batch) -> (state, metrics), jitted, with the state donated.

The state is a dict {step, seed, params, stats, opt, ema, carry}; unused entries are {}. Random numbers depend only on
(seed, step, global row).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, auto_axes, reshard

from configs.knobs import OptimConfig
from errors import UsageError, unknown
from models import Model
from models.core.layers import per_row_keys, site_hash
from models.core.spec import Spec, abstract, flatten, initialize, path_name
from train.sharding.compiler_options import compiler_options
from train.sharding.mesh import Placement, batch_axes
from train.tasks import Batch, Forward, Frozen, SingleForwardTask, Task, WeightedSums
from train.tasks.language import mtp_loss
from train.update import optim
from train.update.precision import cast_parameters

State = dict[str, Any]


@dataclass(frozen=True)
class StepOptions:
    """Options of an update, besides model, task and optimizer."""

    dtype: Any = jnp.float32  # of the parameters
    accumulate: int = 1  # microbatches
    ema: float | None = None  # decay of the running mean of the parameters
    carry: int | None = None  # rows whose recurrent state carries over to the next update
    gradient: str = "autodiff"  # or one of the family's hand-written GRADIENTS
    loss: str = ""  # the task's name, for a hand-written gradient
    freeze_mask: Any = None  # a bool for each parameter: True if frozen; None trains all


@dataclass(frozen=True, eq=False)
class Update:
    """The jitted update: (state, batch) -> (state, metrics). The state is donated, the frozen variables are not."""

    function: Callable[[State, Batch, Frozen], tuple[State, dict[str, jax.Array]]]
    program: Any  # `function`, jitted
    frozen: Frozen

    def __call__(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """The state after one update, and its metrics."""
        traced = isinstance(state["step"], jax.core.Tracer)  # jax refuses compiler options inside of a trace
        return (self.function if traced else self.program)(state, batch, self.frozen)

    def lower(self, state: State, batch: Mapping[str, jax.Array | jax.ShapeDtypeStruct]) -> jax.stages.Lowered:
        """The lowered program."""
        return self.program.lower(state, batch, self.frozen)


def stream_key(seed: jax.Array | int, name: str) -> jax.Array:
    """The PRNG key of a named random stream, such as `params` or `train`: seed, name -> key []."""
    return jax.random.fold_in(jax.random.key(seed), site_hash(name))


def init_state(model: Model, tx: optax.GradientTransformation, seed: int, options: StepOptions) -> State:
    """The initial state; call it under jit. Parameters are initialised in float32, then cast."""
    variables = initialize(model.specs, stream_key(seed, "params"))
    params = jax.tree.map(lambda p: p.astype(options.dtype), variables["params"])
    return {
        "step": jnp.zeros((), jnp.int32),
        "seed": jnp.asarray(seed, jnp.uint32),
        "params": params,
        "stats": variables.get("stats", {}),
        "opt": tx.init(_float32(params)),  # small changes of moments would be lost in bfloat16
        "ema": {} if options.ema is None else _float32(params),
        "carry": initialize(_carry_specs(model, options), stream_key(seed, "carry")),
    }


def _float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _carry_specs(model: Model, options: StepOptions) -> Any:
    """Specs of the recurrent state that carries over between updates, rows first; {} if there is none."""
    return model.cache_specs(options.carry, 0) if options.carry else {}


def state_shardings(model: Model, tx: optax.GradientTransformation, place: Placement, options: StepOptions) -> State:
    """NamedShardings of the state: means and moments are sharded like their parameters, all else is replicated.

    A leaf of the optimizer state counts as a moment if its path ends in a parameter's path and its shape is equal, so
    the rows and columns of factored moments are replicated. Optax's tree_map_params fails on per-leaf transforms.
    """
    table: dict[str, Spec] = flatten(model.specs["params"])

    def leaf_sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        own = max((name for name in table if f"/{path_name(path)}".endswith(f"/{name}")), key=len, default=None)
        return place.sharding(table[own].axes) if own and table[own].shape == leaf.shape else place.replicated

    opt = jax.eval_shape(tx.init, abstract(model.specs["params"]))
    return {
        "step": place.replicated,
        "seed": place.replicated,
        "params": place.shardings(model.specs["params"]),
        "stats": place.shardings(model.specs.get("stats", {})),
        "opt": jax.tree_util.tree_map_with_path(leaf_sharding, opt),
        "ema": {} if options.ema is None else place.shardings(model.specs["params"]),
        "carry": place.shardings(_carry_specs(model, options)),
    }


def init_on_mesh(
    model: Model, tx: optax.GradientTransformation, place: Placement, seed: int, options: StepOptions
) -> State:
    """`init_state` with the shardings of the mesh."""
    shardings = state_shardings(model, tx, place, options)
    return jax.jit(partial(init_state, model, tx, seed, options), out_shardings=shardings)()


def eval_variables(state: State, config: OptimConfig) -> dict[str, Any]:
    """The variables to evaluate by metric prefix. The last entry is the primary one: it is compared, used and exported.

    `config` is the section `optim`. The state needs params, stats, ema and, for schedule_free, opt.
    """
    params = optim.eval_params(config, state.get("opt", {}), state["params"])
    found = {"": {"params": params, "stats": state["stats"]}}
    return {**found, "ema_": {"params": state["ema"], "stats": state["stats"]}} if state["ema"] else found


def split_rows(x: jax.Array, parts: int, over: Any) -> jax.Array:
    """Microbatches of interleaved rows i, i+M, i+2M … (M = parts), without moving data: [B ...] -> [M B/M ...]."""

    def one(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    return auto_axes(one, out_sharding=PartitionSpec(None, *over))(x)


def join_rows(x: jax.Array, over: Any) -> jax.Array:
    """The inverse of `split_rows`: [M B/M ...] -> [B ...]."""

    def one(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return auto_axes(one, out_sharding=over)(x)


def make_step(
    model: Model,
    task: Task,
    tx: optax.GradientTransformation,
    rate: Callable[[jax.Array], jax.Array],
    place: Placement,
    options: StepOptions,
    frozen: Frozen | None = None,
) -> Update:
    """The jitted update: (state, batch) -> (state, metrics).

    If loss, gradient or step is not finite, only `step` changes, and `skipped` is 1. `frozen` are variables that the
    task reads: an argument of the program, neither trained nor donated. Raises UsageError for several microbatches if
    the task couples rows.
    """
    if options.accumulate > 1 and task.couples_rows:
        raise UsageError(
            f"train.accumulate = {options.accumulate} must be 1: loss {options.loss!r} compares each row with all "
            f"others of the batch"
        )
    shardings = state_shardings(model, tx, place, options)
    carry_axes = jax.tree.map(lambda s: s.spec, shardings["carry"])
    gradient = _accumulate(make_gradient(model, task, place, options), task, place, options.accumulate, carry_axes)
    out_shardings = jax.tree.map(lambda s: s.spec, (shardings["params"], shardings["opt"]))
    update = auto_axes(lambda g, o, p, lr: tx.update(g, o, p, lr=lr), out_sharding=out_shardings)

    def step(state: State, batch: Batch, frozen: Any) -> tuple[State, dict[str, jax.Array]]:
        grads, terms, stats, carry = gradient(state, dict(batch), frozen)
        stats = model.update_stats(stats, terms)
        grads = _float32(grads)
        norm = optax.tree.norm(grads)
        value = terms["loss"][0] / terms["loss"][1]
        lr = rate(state["step"])
        updates, opt = update(grads, state["opt"], _float32(state["params"]), lr)
        finite = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(updates))
        moved = jax.tree.map(jnp.subtract, _float32(state["params"]), updates)
        rounding = jax.random.fold_in(stream_key(state["seed"], "rounding"), state["step"])
        params = cast_parameters(moved, state["params"], rounding, out_shardings[0])
        new = {"params": params, "stats": stats, "opt": opt, "carry": carry}
        new["ema"] = _update_ema(state["ema"], params, state["step"], options.ema) if state["ema"] else {}
        kept = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, {k: state[k] for k in new})
        metrics = {name: t[0] / t[1] for name, t in terms.items()}
        metrics.update(grad_norm=norm, lr=lr, skipped=1 - finite.astype(jnp.float32))
        return {**kept, "step": state["step"] + 1, "seed": state["seed"]}, metrics

    xla = compiler_options(place.mesh)
    program = jax.jit(step, donate_argnums=0, out_shardings=(shardings, place.replicated), compiler_options=xla)
    return Update(step, program, frozen or {})


def _accumulate(
    grad: Callable[..., Any], task: Task, place: Placement, parts: int, carry_axes: Any
) -> Callable[[State, Batch, Frozen], tuple[Any, Any, Any, Any]]:
    """(state, batch, frozen) -> (gradient, terms, statistics, recurrent state) of a batch in `parts` microbatches."""

    def gradient(state: State, batch: Batch, frozen: Frozen) -> tuple[Any, Any, Any, Any]:
        key = jax.random.fold_in(stream_key(state["seed"], "train"), state["step"])
        rows = reshard(jnp.arange(batch["weight"].shape[0]), place("batch"))
        total = jnp.sum(task.loss_weight(batch))
        carry = _reset_carry(state["carry"], batch.pop("reset", None))
        if parts == 1:
            grads, (terms, stats, carry) = grad(
                state["params"], state["stats"], batch, per_row_keys(key, rows), total, carry, frozen
            )
            return grads, terms, stats, carry

        def micro(sums: Any, part: Any) -> tuple[Any, Any]:
            (grads, stats), (batch, rows, carry) = sums, part
            more, (terms, stats, carry) = grad(
                state["params"], stats, batch, per_row_keys(key, rows), total, carry, frozen
            )
            return (jax.tree.map(jnp.add, grads, more), stats), (terms, carry)

        start = jax.tree.map(jnp.zeros_like, _float32(state["params"])), state["stats"]
        split = {k: split_rows(x, parts, place(batch_axes(k, x.ndim))) for k, x in batch.items()}
        along = split, split_rows(rows, parts, place("batch")), _map_rows(partial(split_rows, parts=parts), carry)
        (grads, stats), (terms, carry) = jax.lax.scan(micro, start, along)
        return grads, jax.tree.map(lambda t: jnp.sum(t, 0), terms), stats, _map_rows(join_rows, carry)

    def _map_rows(function: Callable[..., jax.Array], carry: Any) -> Any:
        return jax.tree.map(lambda x, over: function(x, over=over), carry, carry_axes)

    return gradient


def _reset_carry(carry: Any, reset: jax.Array | None) -> Any:
    """The recurrent state, set to 0 in the rows where a new sequence begins: reset [B]."""
    if reset is None:
        return carry
    return jax.tree.map(lambda x: x * (1 - reset.reshape(-1, *[1] * (x.ndim - 1))).astype(x.dtype), carry)


def _update_ema(mean: Any, params: Any, step: jax.Array, decay: float | None) -> Any:
    """The running mean after an update. Its decay is smaller at the start, to forget the initial values soon."""
    keep = jnp.minimum(decay or 0.0, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda m, p: keep * m + (1 - keep) * p.astype(m.dtype), mean, params)


def make_gradient(model: Model, task: Task, place: Placement, options: StepOptions) -> Callable[..., Any]:
    """(params, stats, batch, keys, total, carry, frozen) -> (gradient of the loss's sum / `total`, (terms, …)).

    The rest is the statistics and the recurrent state after the task's last forward pass. It uses autodiff or a
    hand-written gradient of the family. Raises UsageError if the family lacks that one, or the task needs autodiff.
    """

    def sum_terms(terms: WeightedSums) -> WeightedSums:
        return {name: (jnp.sum(s, 0), jnp.sum(w)) for name, (s, w) in terms.items()}

    def loss(
        params: Any, stats: Any, batch: Batch, keys: jax.Array, total: jax.Array, carry: Any, frozen: Frozen
    ) -> Any:
        if options.freeze_mask is not None:
            params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, options.freeze_mask)
        variables = {"params": params, "stats": stats}
        forward = Forward(model, variables, place, keys=keys, train=True, cache=carry or None)
        own = task.loss(forward, batch, frozen)
        terms = sum_terms({**forward.metrics(batch), **own})
        added = forward.aux_losses()
        share = terms["loss"][1] / total
        more = sum(added.values(), start=jnp.zeros(()))
        terms |= {name: (mean * share, share) for name, mean in added.items()}
        if any(out.mtp_values for out in forward.outputs):
            if not isinstance(task, SingleForwardTask):
                many = f"{model.family} as configured predicts {len(forward.outputs[0].mtp_values)} more"
                raise UsageError(f"loss {options.loss!r} does not support multi-token prediction; {many}")
            (out,) = forward.outputs
            nats, weight = mtp_loss(task, out.mtp_values, batch, place)
            terms["mtp_loss"] = nats, weight
            more = more + out.mtp_weight * nats / terms["loss"][1]
        last = forward.outputs[-1].cache if carry else carry
        return terms["loss"][0] / total + share * more, (terms, forward.stats, last)

    if options.gradient == "autodiff":
        return jax.grad(loss, has_aux=True)
    sources = getattr(model.module, "GRADIENTS", {})
    if options.gradient not in sources:
        raise unknown(f"source of gradients of family {model.family}", options.gradient, ("autodiff", *sources))
    if not isinstance(task, SingleForwardTask):
        raise UsageError(
            f"train.gradient = {options.gradient!r} does not support loss {options.loss!r}, which runs the network "
            f"itself; it needs 'autodiff'"
        )

    def hand_written_gradient(
        params: Any, stats: Any, batch: Batch, keys: jax.Array, total: jax.Array, carry: Any, frozen: Frozen
    ) -> Any:
        value, grads = sources[options.gradient](params, batch, model.config, options.loss, total)
        if options.freeze_mask is not None:
            grads = jax.tree.map(lambda g, f: jnp.zeros_like(g) if f else g, grads, options.freeze_mask)
        return grads, (sum_terms(task.terms(value, batch)), stats, carry)

    return hand_written_gradient
