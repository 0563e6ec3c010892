"""Learning-rate schedules: the rate of each update as a function of its number alone."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from errors import UsageError, join_problems, unknown


def _wsd(cfg: Any, updates: int) -> optax.Schedule:
    """Warm-up, stable, decay: constant, then a line to the end (Hu et al. 2024, arXiv:2404.06395, section 4)."""
    cooling = max(1, round(cfg.decay_fraction * (cfg.warmup + updates)))
    if cooling > updates:
        raise UsageError(
            f"schedule.warmup = {cfg.warmup} and schedule.decay_fraction = {cfg.decay_fraction} overlap in "
            f"{cfg.warmup + updates} updates"
        )
    return optax.linear_schedule(1.0, cfg.end_fraction, cooling, updates - cooling)


def _onecycle(cfg: Any, updates: int) -> optax.Schedule:
    """Up to the peak, down again in as many updates, and on to the end (Smith, Topin 2017, arXiv:1708.07120)."""
    if cfg.warmup:
        raise UsageError(f"schedule 'onecycle' rises by itself: schedule.warmup must be 0, not {cfg.warmup}")
    up = int(cfg.warmup_fraction * updates)
    at, shares = (
        np.array([0, up, 2 * up, updates]),
        np.array([cfg.start_fraction, 1, cfg.start_fraction, cfg.end_fraction], np.float32),
    )
    return lambda step: jnp.interp(step, at, shares)


def _piecewise(cfg: Any, updates: int) -> optax.Schedule:
    """Constant between the updates that `milestones` names, each of which multiplies by its factor."""
    if cfg.milestones is None:
        raise UsageError("schedule 'piecewise' needs schedule.milestones, as 600:0.1,800:0.1")
    return optax.piecewise_constant_schedule(1.0, {n - cfg.warmup: f for n, f in _parse_milestones(cfg).items()})


def _parse_milestones(cfg: Any) -> dict[int, float]:
    """`600:0.1,800:0.1` -> update: factor; {} unless updates rise, after the warm-up, and factors are positive."""
    try:
        jumps = [(int(n), float(factor)) for n, factor in (part.split(":") for part in cfg.milestones.split(","))]
    except ValueError:
        return {}
    updates = [cfg.warmup, *(n for n, _ in jumps)]
    rising = all(n < later for n, later in pairwise(updates)) and updates[-1] < 2**31
    return dict(jumps) if rising and all(0 < factor < math.inf for _, factor in jumps) else {}


def _inverse_sqrt(cfg: Any, updates: int) -> optax.Schedule:
    """Falling as 1/sqrt(update) from the warm-up on (Vaswani et al. 2017, arXiv:1706.03762, section 5.3)."""
    first = cfg.warmup + 1  # the update, counted from 1, that has the peak
    return lambda step: (first / (first + step)) ** 0.5


SCHEDULES: dict[str, Callable[[Any, int], optax.Schedule]] = {
    # (knobs, updates after the warm-up) -> the share of the peak at each of these updates, counted from 0
    "constant": lambda cfg, updates: optax.constant_schedule(1.0),
    "linear": lambda cfg, updates: optax.linear_schedule(1.0, cfg.end_fraction, updates),
    "cosine": lambda cfg, updates: optax.cosine_decay_schedule(1.0, updates, cfg.end_fraction),
    "polynomial": lambda cfg, updates: optax.polynomial_schedule(1.0, cfg.end_fraction, cfg.power, updates),
    "inverse_sqrt": _inverse_sqrt,
    "wsd": _wsd,
    "onecycle": _onecycle,
    "piecewise": _piecewise,
}

RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "end_fraction": ("between 0 and 1", lambda v: 0 <= v <= 1),
    "power": ("positive", lambda v: 0 < v < math.inf),
    "decay_fraction": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "start_fraction": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "warmup_fraction": ("above 0 and at most 0.5", lambda v: 0 < v <= 0.5),
}


def find_problems(cfg: Any, steps: int) -> list[str]:
    """What is wrong with the section `schedule` of a config for a run of `steps` updates, a line each."""
    found = [] if cfg.name in SCHEDULES else [str(unknown("schedule.name", cfg.name, SCHEDULES))]
    if not 0 <= cfg.warmup <= steps:
        found.append(f"config key 'schedule.warmup' must lie between 0 and train.steps = {steps}, not {cfg.warmup}")
    rules = [(name, rule) for name, (rule, ok) in RANGES.items() if not ok(cfg[name])]
    found += [f"config key 'schedule.{name}' must be {rule}, not {cfg[name]}" for name, rule in rules]
    if cfg.milestones is not None and not _parse_milestones(cfg):
        found.append(
            "config key 'schedule.milestones' must be UPDATE:FACTOR joined by commas, as 600:0.1,800:0.1, with rising "
            f"updates above schedule.warmup = {cfg.warmup} and positive factors, not {cfg.milestones!r}"
        )
    return found


def make(cfg: Any, lr: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of each update: step [] -> [], by `cfg.schedule`, over `steps` updates.

    The warm-up rises linearly, its first update already above 0. Raises UsageError for an unknown name or bad value.
    """
    if problems := find_problems(cfg, steps):
        raise join_problems(problems)
    after = SCHEDULES[cfg.name](cfg, max(1, steps - cfg.warmup))

    def rate(step: jax.Array) -> jax.Array:
        rising = (step + 1) / (cfg.warmup + 1)
        return lr * jnp.where(step < cfg.warmup, rising, after(jnp.maximum(step - cfg.warmup, 0)))

    return rate
