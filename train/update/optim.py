"""Optimizers, all from Optax.

The learning rate is an argument: `update(gradients, state, params, lr=rate)` returns the step to subtract. So no
optimizer state contains a rate or schedule, and a resumed run may change them.
"""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import GradientTransformation, OptState, contrib

import imports
from configs.knobs import OptimConfig
from errors import UsageError, join_problems, quote, unknown
from models.core.spec import Spec
from models.core.types import Params, Specs, Tree
from train.update import param_groups

Maker = Callable[[OptimConfig, GradientTransformation, Specs], list[GradientTransformation]]
OPTIMIZERS: dict[str, Maker] = {
    # (knobs, weight decay, specs) -> transforms of a chain. Decay comes first if it is part of the gradient (L2), last
    # if it is decoupled from the moments (Loshchilov, Hutter 2019, arXiv:1711.05101)
    "sgd": lambda config, decay, specs: [decay],
    "momentum": lambda config, decay, specs: [decay, optax.trace(config.momentum)],
    # Sutskever, Martens, Dahl, Hinton 2013, "On the importance of initialization and momentum", with the gradient
    # taken at the look-ahead point, as in PyTorch
    "nesterov": lambda config, decay, specs: [decay, optax.trace(config.momentum, nesterov=True)],
    "adam": lambda config, decay, specs: [decay, _adam(config)],
    "adamw": lambda config, decay, specs: [_adam(config), decay],
    # Chen et al. 2023, arXiv:2302.06675, algorithm 2
    "lion": lambda config, decay, specs: [optax.scale_by_lion(config.beta1, config.beta2), decay],
    "adafactor": lambda config, decay, specs: [_adafactor(specs), decay],
    "muon": lambda config, decay, specs: [_muon(config, specs), decay],
    "schedule_free": lambda config, decay, specs: [
        optax.scale_by_rms(
            config.beta2, config.eps, eps_in_sqrt=False, bias_correction=True
        ),  # Adam without first moment
        decay,
    ],
}


def find_optimizer(name: str) -> Maker:
    """An entry of OPTIMIZERS, or that of a user's `package.file:function`, with decoupled weight decay.

    The function makes an Optax transform of gradients into a direction, such as optax.scale_by_adam(), from the section
    `optim` if it `takes_config`. Raises UsageError for an unknown name.
    """
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    key, function = _own_function(name)

    def make(config: OptimConfig, decay: GradientTransformation, specs: Specs) -> list[GradientTransformation]:
        with imports.code_errors(key, name.rpartition(":")[0]):
            transform = function(config) if takes_config(name) else function()
            _check_direction(transform, key, specs)
        return [transform, decay]

    return make


def takes_config(name: str) -> bool:
    """Whether a user's `package.file:function` takes the section `optim`: it has a parameter without a default.

    Raises UsageError as `find_optimizer`.
    """
    key, function = _own_function(name)
    with imports.code_errors(key, name.rpartition(":")[0]):
        parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


def _own_function(name: str) -> tuple[str, Callable[..., object]]:
    """The config key with its value, for messages, and the function."""
    if not imports.NAME.fullmatch(name):
        raise unknown("optim.name", name, OPTIMIZERS)
    key = f"config key 'optim.name' = {name!r}"
    return key, imports.load_name(name, key)


def _check_direction(transform: object, key: str, specs: Specs) -> None:
    """Raise UsageError unless a transform returns a direction to subtract, without the learning rate and its sign.

    The direction is that on small parameters of the same paths, unless the transform needs their real shapes.
    """
    if not isinstance(transform, GradientTransformation):
        raise UsageError(f"{key} returns {quote(transform)}, not an optax.GradientTransformation")
    extended = optax.with_extra_args_support(transform)

    def update(gradient: Params) -> Params:
        params = jax.tree.map(jnp.ones_like, gradient)
        return extended.update(gradient, extended.init(params), params, lr=jnp.ones(()))[0]

    full = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs)
    found = jax.eval_shape(update, full)
    if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, full):
        raise UsageError(f"{key} returns updates of other shapes than the parameters'")
    small = jax.tree.map(lambda spec: 1 + jnp.arange(2.0 ** len(spec.shape)).reshape([2] * len(spec.shape)), specs)
    try:
        updates = update(small)
    except Exception:  # of a user's code, which has passed with the real shapes
        return
    if any(jnp.vdot(u, g) < 0 for u, g in zip(*map(jax.tree.leaves, (updates, small)), strict=True)):
        raise UsageError(
            f"{key} returns steps against the gradient; return the direction, as optax.scale_by_adam() does"
        )


def _adam(config: OptimConfig) -> GradientTransformation:
    return optax.scale_by_adam(config.beta1, config.beta2, config.eps)


def _adafactor(specs: Specs) -> GradientTransformation:
    """Factored second moments (rows and columns), updates clipped to RMS 1 and scaled by the parameter's RMS.

    The learning rate is the paper's relative step size. Matrices with a dim below 128 keep the full second moment.

    Source: Shazeer, Stern 2018, arXiv:1804.04235, algorithms 4 and 5, without the first moment.
    """
    one = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
    return _per_matrix(one, specs)


def _per_matrix(inner: GradientTransformation, specs: Specs) -> GradientTransformation:
    """Apply `inner` to each parameter of a stacked leaf separately, reshaped to a matrix if it is contracted.

    Otherwise the moments of a stack would be factored along its two largest dims, whatever these are, and its layers
    would be clipped together.
    """

    def matrix_dims(spec: Spec) -> tuple[list[int], list[int]]:
        stacked, contracted, rest = param_groups.group_dims(spec)
        order = stacked + contracted + rest
        return order, [spec.shape[i] for i in order]

    def fold(spec: Spec, x: jax.Array) -> jax.Array:
        groups = param_groups.group_dims(spec)
        stack, inside, outside = (int(np.prod([spec.shape[i] for i in g])) for g in groups)
        shape = (inside, outside) if groups[1] else [spec.shape[i] for i in groups[2]]
        return x.transpose(matrix_dims(spec)[0]).reshape(stack, *shape)

    def unfold(spec: Spec, x: jax.Array) -> jax.Array:
        order, shape = matrix_dims(spec)
        return x.reshape(shape).transpose(np.argsort(order))

    def init(params: Params) -> OptState:
        return jax.tree.map(lambda s, p: jax.vmap(inner.init)(fold(s, p)), specs, params)

    def update(updates: Params, state: OptState, params: Params) -> tuple[Params, OptState]:
        one = lambda s, u, o, p: jax.vmap(inner.update)(fold(s, u), o, fold(s, p))  # noqa: E731
        pairs = jax.tree.map(one, specs, updates, state, params)
        first = jax.tree.map(lambda s, pair: unfold(s, pair[0]), specs, pairs)
        return first, jax.tree.map(lambda s, pair: pair[1], specs, pairs)

    return GradientTransformation(init, update)


def muon_dims(spec: Spec) -> contrib.MuonDimensionNumbers | None:
    """The row and column dims of a leaf's matrices for Muon, or None if Adam updates the leaf.

    Muon updates the matrices of products, except the output head, whose rows are classes. Stacked ones are separate.
    """
    _, contracted, rest = param_groups.group_dims(spec)
    if not contracted or not rest or {"vocab", "classes"} & set(spec.names):
        return None
    return contrib.MuonDimensionNumbers(tuple(contracted), tuple(rest))


def _muon(config: OptimConfig, specs: Specs) -> GradientTransformation:
    """Muon, momentum orthogonalised per matrix and scaled to RMS 0.2 like an Adam update; Adam for the other leaves.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale by Liu et al. 2025,
    arXiv:2502.16982, eq. 4.
    """

    def scale(spec: Spec) -> float | optax.MaskedNode:
        found = muon_dims(spec)
        sizes = [int(np.prod([spec.shape[i] for i in group])) for group in found or ()]
        return 0.2 * max(sizes) ** 0.5 if found else optax.MaskedNode()

    numbers = jax.tree.map(lambda s: muon_dims(s) or optax.MaskedNode(), specs)
    muon = contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=numbers)
    labels = jax.tree.map(lambda s: "muon" if muon_dims(s) else "adam", specs)
    links = {"muon": optax.chain(muon, _scale_by_tree(jax.tree.map(scale, specs))), "adam": _adam(config)}
    return optax.partition(links, labels)


def _scale_by_tree(factors: Tree) -> GradientTransformation:
    """Multiply each leaf of an update by its factor."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, factors))


def _scale_by_lr(
    updates: Params, state: OptState, params: Params | None = None, *, lr: jax.Array, **rest: object
) -> tuple[Params, OptState]:
    return jax.tree.map(lambda u: lr * u, updates), state


def _schedule_free(inner: GradientTransformation, beta: float) -> GradientTransformation:
    """Schedule-free: `inner` steps z; gradients are taken at y, between z and its average x. The parameters are y.

    x weights each z by the square of the largest learning rate so far. All of it is float32. `eval_params` gives x.

    Source: Defazio et al. 2024, arXiv:2405.15682, algorithm 1.
    """
    f32 = partial(optax.tree.cast, dtype=jnp.float32)

    def with_lr(
        lr: jax.Array | float,
    ) -> GradientTransformation:  # Optax takes the rate at construction; rebuilt at each update, it has no state
        return contrib.schedule_free(optax.chain(inner, optax.scale(-lr)), lr, beta)

    def init(params: Params) -> OptState:
        return with_lr(0.0).init(f32(params))

    def update(
        updates: Params, state: OptState, params: Params, *, lr: jax.Array, **rest: object
    ) -> tuple[Params, OptState]:
        moved, state = with_lr(lr).update(f32(updates), state, f32(params))
        return jax.tree.map(jnp.negative, moved), state

    return optax.GradientTransformationExtraArgs(init, update)


def schedule_free_average(y: jax.Array, z: jax.Array, beta: float) -> jax.Array:
    """The average x of a leaf under schedule_free, from the parameters y = beta x + (1 - beta) z."""
    return ((y - (1 - beta) * z) / beta).astype(y.dtype)


def eval_params(config: OptimConfig, opt_state: OptState, params: Params) -> Params:
    """The parameters to evaluate, from a state's `opt` and `params`: the average x for `schedule_free`, else `params`.

    `config` is the section `optim`.
    """
    if config.name != "schedule_free":
        return params
    is_frozen = lambda z: isinstance(z, optax.MaskedNode)  # noqa: E731
    state = opt_state if isinstance(opt_state, contrib.ScheduleFreeState) else opt_state[0].inner_state
    one = lambda z, y: y if is_frozen(z) else schedule_free_average(y, z, config.beta1)  # noqa: E731
    return jax.tree.map(one, state.z, params, is_leaf=is_frozen)


RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "momentum": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "beta1": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "beta2": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "lr": ("0 or more", lambda v: v >= 0),
    "weight_decay": ("0 or more", lambda v: v >= 0),
    "eps": ("positive", lambda v: v > 0),
    "clip_norm": ("positive", lambda v: v > 0),
    "layer_decay": ("above 0 and at most 1", lambda v: 0 < v <= 1),
}


def find_problems(config: OptimConfig) -> list[str]:
    """One line for each illegal number in the section `optim` of a config."""
    given = {name: getattr(config, name) for name in RANGES}
    wrong = {name: rule for name, (rule, ok) in RANGES.items() if given[name] is not None and not ok(given[name])}
    found = [f"config key 'optim.{name}' must be {rule}, not {given[name]!r}" for name, rule in wrong.items()]
    if config.name == "schedule_free" and not config.beta1:
        found.append("config key 'optim.beta1' must be positive for schedule_free, not 0.0")
    return found


def make(config: OptimConfig, specs: Specs) -> GradientTransformation:
    """The optimizer of `config.optim`, whose update takes `lr`. Frozen leaves have no state and do not change.

    Raises UsageError for an unknown name, an illegal value, and a pattern that matches no leaf.
    """
    if problems := find_problems(config):
        raise join_problems(problems)

    multipliers, frozen = (
        param_groups.lr_multipliers(config.lr_multipliers, config.layer_decay, specs),
        param_groups.freeze_mask(config.freeze, specs),
    )
    if config.freeze is not None:  # from here on only the trained leaves
        specs, multipliers = (
            jax.tree.map(lambda f, x: optax.MaskedNode() if f else x, frozen, t) for t in (specs, multipliers)
        )
    clip = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    mask = param_groups.decay_mask(specs, config.decay_embeddings)
    decay = optax.add_decayed_weights(config.weight_decay, mask) if config.weight_decay else optax.identity()
    links = [*clip, *find_optimizer(config.name)(config, decay, specs), _scale_by_tree(multipliers)]
    if config.name == "schedule_free":  # the multipliers scale the steps of z
        tx = _schedule_free(optax.chain(*links), config.beta1)
    else:
        tx = optax.chain(*links, optax.GradientTransformationExtraArgs(optax.init_empty_state, _scale_by_lr))
    if config.freeze is None:
        return tx
    trained = jax.tree.map(lambda f: not f, frozen)
    return optax.chain(optax.masked(tx, trained), optax.masked(optax.set_to_zero(), frozen))
