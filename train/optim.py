"""Optimizers from Optax, learning-rate schedules, and the mask of what decays.

Updates come out of Optax before the learning rate: `step.py` multiplies by it, as a function of the step alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from errors import UsageError, unknown
from models.spec import Spec

OPTIMIZERS: dict[str, Callable[[Any, Any], list[optax.GradientTransformation]]] = {
    # decay comes last in adamw alone, decoupled from the moments (Loshchilov, Hutter 2019, arXiv:1711.05101)
    "sgd": lambda cfg, decay: [decay],
    "momentum": lambda cfg, decay: [decay, optax.trace(cfg.momentum)],
    "adam": lambda cfg, decay: [decay, optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps)],
    "adamw": lambda cfg, decay: [optax.scale_by_adam(cfg.beta1, cfg.beta2, cfg.eps), decay],
}

SCHEDULES: dict[str, Callable[[int, float], optax.Schedule]] = {  # (updates, last share) -> share of the peak
    "constant": lambda updates, end: optax.constant_schedule(1.0),
    "linear": lambda updates, end: optax.linear_schedule(1.0, end, updates),
    "cosine": lambda updates, end: optax.cosine_decay_schedule(1.0, updates, end),
}


def decays(specs: Any, embeddings: bool) -> Any:
    """Which leaves weight decay touches: those that are contracted (fan_in), and tables if `embeddings` -> bools."""

    def one(spec: Spec) -> bool:
        table = len([n for n in spec.names if n != "layers"]) > 1 and "embed" in spec.names
        return bool(spec.fan_in) or (embeddings and table)

    return jax.tree.map(one, specs)


def make(cfg: Any, specs: Any) -> optax.GradientTransformation:
    """The optimizer of `cfg.optim`, without the learning rate. Raises UsageError for an unknown name or bad value."""
    if cfg.name not in OPTIMIZERS:
        raise unknown("optimizer", cfg.name, OPTIMIZERS)
    rules: dict[str, Callable[[float], bool]] = {
        "a number in [0, 1)": lambda v: 0 <= v < 1,
        "0 or more": lambda v: v >= 0,
        "positive": lambda v: v > 0,
    }
    names = ("momentum", "beta1", "beta2"), ("lr", "decay"), ("eps", "clip")
    for (rule, ok), group in zip(rules.items(), names, strict=True):
        for name in group:
            if cfg[name] is not None and not ok(cfg[name]):
                raise UsageError(f"config key 'optim.{name}' must be {rule}, not {cfg[name]!r}")
    clip = [] if cfg.clip is None else [optax.clip_by_global_norm(cfg.clip)]
    mask = decays(specs, cfg.decay_embeddings)
    decay = optax.add_decayed_weights(cfg.decay, mask) if cfg.decay else optax.identity()
    return optax.chain(*clip, *OPTIMIZERS[cfg.name](cfg, decay))


def schedule(cfg: Any, lr: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of each update: step [] -> [], by `cfg.schedule`, over `steps` updates.

    The warm-up rises linearly, its first update already above 0. Raises UsageError for an unknown name or bad value.
    """
    if cfg.name not in SCHEDULES:
        raise unknown("schedule", cfg.name, SCHEDULES)
    if not 0 <= cfg.warmup <= steps:
        raise UsageError(f"config key 'schedule.warmup' must lie between 0 and train.steps = {steps}, not {cfg.warmup}")
    if not 0 <= cfg.end <= 1:
        raise UsageError(f"config key 'schedule.end' must lie between 0 and 1, not {cfg.end}")
    after = SCHEDULES[cfg.name](max(1, steps - cfg.warmup), cfg.end)

    def rate(step: jax.Array) -> jax.Array:
        rising = (step + 1) / (cfg.warmup + 1)
        return lr * jnp.where(step < cfg.warmup, rising, after(jnp.maximum(step - cfg.warmup, 0)))

    return rate
