"""A matrix and a vector with gradients, and what an optimizer makes of them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs.knobs import OptimConfig
from models.core.spec import Spec, lecun_normal, zeros
from train.update import optim

F32 = 1e-5  # relative: a few roundings of float32
TABLE = {"w": Spec((3, 2), "embed mlp", lecun_normal, fan_in="embed"), "b": Spec((2,), "norm", zeros)}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def settings(**more: Any) -> Any:
    return OptimConfig(**more)


def by_optax(cfg: Any, table: Any, start: Any, gradients: list[Any], lr: float) -> tuple[Any, Any]:
    """Parameters and state after these gradients."""
    tx, params = optim.make(cfg, table), jax.tree.map(jnp.asarray, start)
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gradients:
        updates, state = update(jax.tree.map(jnp.asarray, g), state, params, lr=jnp.float32(lr))
        params = jax.tree.map(jnp.subtract, params, updates)
    return params, state


START = {"w": draw(3, 2), "b": draw(2) + 1}
GRADIENTS = [{"w": draw(3, 2) * k, "b": draw(2) - k} for k in (0.01, 1.0, -2.0)]
