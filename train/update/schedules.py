"""Learning-rate schedules: the learning rate as a function of the update's number."""

import math
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.knobs import ScheduleConfig
from errors import UsageError, join_problems, unknown
from pairs import parse_pairs


def _wsd(config: ScheduleConfig, updates: int) -> optax.Schedule:
    """Warm-up, stable, decay: constant, then linear to the end (Hu et al. 2024, arXiv:2404.06395, section 4)."""
    cooling = max(1, round(config.decay_fraction * (config.warmup + updates)))
    if cooling > updates:
        raise UsageError(
            f"schedule.warmup = {config.warmup} and schedule.decay_fraction = {config.decay_fraction} overlap in "
            f"{config.warmup + updates} updates"
        )
    return optax.linear_schedule(1.0, config.end_fraction, cooling, updates - cooling)


def _onecycle(config: ScheduleConfig, updates: int) -> optax.Schedule:
    """Linear up to the peak, down in as many updates, and down to the end (Smith, Topin 2017, arXiv:1708.07120)."""
    if config.warmup:
        raise UsageError(f"schedule.warmup must be 0 for schedule 'onecycle', which has its own, not {config.warmup}")
    up = int(config.warmup_fraction * updates)
    at = np.array([0, up, 2 * up, updates])
    shares = np.array([config.start_fraction, 1, config.start_fraction, config.end_fraction], np.float32)
    return lambda step: jnp.interp(step, at, shares)


def _piecewise(config: ScheduleConfig, updates: int) -> optax.Schedule:
    """Piecewise constant: each update in `milestones` multiplies the rate by its factor."""
    if config.milestones is None:
        raise UsageError("schedule 'piecewise' needs schedule.milestones, as 600:0.1,800:0.1")
    return optax.piecewise_constant_schedule(1.0, {n - config.warmup: f for n, f in _parse_milestones(config).items()})


def _parse_milestones(config: ScheduleConfig) -> dict[int, float]:
    """`600:0.1,800:0.1` -> {600: 0.1, 800: 0.1}; {} unless updates increase from the warm-up on and factors are > 0."""
    try:
        pairs = parse_pairs(config.milestones, "schedule.milestones")
        jumps = [(int(n), float(factor)) for n, factor in pairs]
    except ValueError:  # UsageError too
        return {}
    updates = [config.warmup, *(n for n, _ in jumps)]
    rising = all(n < later for n, later in pairwise(updates)) and updates[-1] < 2**31
    return dict(jumps) if rising and all(0 < factor < math.inf for _, factor in jumps) else {}


def _inverse_sqrt(config: ScheduleConfig, updates: int) -> optax.Schedule:
    """Decay as 1/sqrt(update) after the warm-up (Vaswani et al. 2017, arXiv:1706.03762, section 5.3)."""
    first = config.warmup + 1  # the update, counted from 1, with the peak rate
    return lambda step: (first / (first + step)) ** 0.5


SCHEDULES: dict[str, Callable[[ScheduleConfig, int], optax.Schedule]] = {
    # (knobs, updates after the warm-up) -> function from update, counted from 0 there, to a fraction of the peak rate
    "constant": lambda config, updates: optax.constant_schedule(1.0),
    "linear": lambda config, updates: optax.linear_schedule(1.0, config.end_fraction, updates),
    "cosine": lambda config, updates: optax.cosine_decay_schedule(1.0, updates, config.end_fraction),
    "polynomial": lambda config, updates: optax.polynomial_schedule(1.0, config.end_fraction, config.power, updates),
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


def find_problems(config: ScheduleConfig, steps: int) -> list[str]:
    """One line for each illegal value but the name in the section `schedule` of a config, for `steps` updates."""
    found = []
    if not 0 <= config.warmup <= steps:
        found.append(f"config key 'schedule.warmup' must lie between 0 and train.steps = {steps}, not {config.warmup}")
    for name, (rule, ok) in RANGES.items():
        if not ok(getattr(config, name)):
            found.append(f"config key 'schedule.{name}' must be {rule}, not {getattr(config, name)}")
    if config.milestones is not None and not _parse_milestones(config):
        found.append(
            "config key 'schedule.milestones' must be UPDATE:FACTOR joined by commas, as 600:0.1,800:0.1, with rising "
            f"updates above schedule.warmup = {config.warmup} and positive factors, not {config.milestones!r}"
        )
    return found


def make(config: ScheduleConfig, lr: float, steps: int) -> Callable[[jax.Array], jax.Array]:
    """The learning rate of `config.schedule` over `steps` updates, as a function of the update: step [] -> [].

    The warm-up is linear; its first update is above 0. Raises UsageError for an unknown name or illegal value.
    """
    if config.name not in SCHEDULES:
        raise unknown("schedule.name", config.name, SCHEDULES)
    if problems := find_problems(config, steps):
        raise join_problems(problems)
    after = SCHEDULES[config.name](config, max(1, steps - config.warmup))

    def rate(step: jax.Array) -> jax.Array:
        rising = (step + 1) / (config.warmup + 1)
        return lr * jnp.where(step < config.warmup, rising, after(jnp.maximum(step - config.warmup, 0)))

    return rate
