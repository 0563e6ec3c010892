"""Routers of mixtures of experts: functions from logits to where each token goes, one a paper.

Legend: B batch, T time, D width, E experts, A experts that a token is sent to.

A router stays in float32, whatever the activations are: among many experts rounding changes which are chosen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.layers import add_bias, einsum
from models.spec import Place, unsharded


class Routes(NamedTuple):
    """Where a router sends each token."""

    experts: Int[Array, "b t a"]
    weights: Float[Array, "b t a"]  # of what they give, float32
    shares: Float[Array, "b t e"]  # what the router would give to each expert, of 1 in all, float32


def router_logits(x: Float[Array, "b t d"], p: dict[str, Array], place: Place = unsharded) -> Float[Array, "b t e"]:
    """x [B T D] by kernel [D E], perhaps plus bias [E], in float32 whatever x is -> [B T E]."""
    with jax.default_matmul_precision("highest"):
        logits = einsum("btd,de->bte", x.astype(jnp.float32), p["kernel"], place("batch seq choice"))
    return add_bias(logits, p["bias"]) if "bias" in p else logits


def softmax_then_top(logits: Float[Array, "b t e"], active: int, renormalise: bool) -> Routes:
    """The largest shares of a softmax, perhaps made to sum to 1: logits [B T E] -> Routes.

    Source: renormalised, Jiang et al. 2024, arXiv:2401.04088, section 2.1 (there as a softmax over the largest logits,
    which is the same); as they are, xAI's Grok-1.
    """
    shares = jax.nn.softmax(logits, -1)
    experts, weights = top(shares, active)
    return Routes(experts, weights / jnp.sum(weights, -1, keepdims=True) if renormalise else weights, shares)


def top_then_softmax(logits: Float[Array, "b t e"], active: int) -> Routes:
    """A softmax over the largest logits: logits [B T E] -> Routes. Source: OpenAI 2025, arXiv:2508.10925, 2.2."""
    experts, largest = top(logits, active)
    return Routes(experts, jax.nn.softmax(largest, -1), jax.nn.softmax(logits, -1))


def top_then_sigmoid(logits: Float[Array, "b t e"], active: int) -> Routes:
    """A sigmoid of each of the largest logits: logits [B T E] -> Routes. Source: Meta 2025, Llama 4's released code."""
    experts, largest = top(logits, active)
    return Routes(experts, jax.nn.sigmoid(largest), jax.nn.softmax(logits, -1))


def softmax_in_groups(
    logits: Float[Array, "b t e"], active: int, groups: int, kept: int, scaling: float = 1.0
) -> Routes:
    """The largest shares of a softmax within the groups of the largest: logits [B T E] -> Routes.

    Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.2.2; the weights are scaled, and need not sum to 1.
    """
    shares = jax.nn.softmax(logits, -1)
    experts, _ = top(of_best_groups(shares, groups, kept, best=1), active)
    return Routes(experts, picked(shares, experts) * scaling, shares)


def sigmoid_in_groups(
    logits: Float[Array, "b t e"],
    bias: Float[Array, " e"],
    active: int,
    groups: int,
    kept: int,
    renormalise: bool = True,
    scaling: float = 1.0,
) -> Routes:
    """The largest of biased sigmoids within the groups whose two best are: logits [B T E], bias [E] -> Routes.

    The bias takes part in the choice, and not in the weights. Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 12 to 16.
    """
    scores = jax.nn.sigmoid(logits)
    experts, _ = top(of_best_groups(add_bias(scores, bias), groups, kept, best=2), active)
    weights = picked(scores, experts)
    if renormalise:
        weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
    return Routes(experts, weights * scaling, scores / jnp.sum(scores, -1, keepdims=True))


def of_best_groups(scores: Float[Array, "b t e"], groups: int, kept: int, best: int) -> Float[Array, "b t e"]:
    """Scores [B T E], -inf outside of the `kept` groups whose `best` largest have the largest sums -> [B T E]."""
    if kept == groups:
        return scores
    B, T, E = scores.shape
    apart = scores.reshape(B, T, groups, E // groups)
    sums = jnp.sum(jax.lax.top_k(jax.lax.stop_gradient(apart), best)[0], -1)
    chosen = jnp.any(one_hot(top(sums, kept)[0], groups), 2)
    return jnp.where(chosen[..., None], apart, -jnp.inf).reshape(B, T, E)


def top(values: Float[Array, "b t e"], active: int) -> tuple[Int[Array, "b t a"], Float[Array, "b t a"]]:
    """The places of the largest values, the first of equals, and those values: [B T E] -> [B T A], [B T A]."""
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(values), active)
    return experts, picked(values, experts)


def picked(values: Float[Array, "b t e"], experts: Int[Array, "b t a"]) -> Float[Array, "b t a"]:
    """Each token's values of its experts: [B T E], [B T A] -> [B T A]."""
    return jnp.sum(jnp.where(one_hot(experts, values.shape[-1]), values[:, :, None], 0), -1)


def one_hot(experts: Int[Array, "b t a"], count: int) -> Bool[Array, "b t a e"]:
    """Whether each choice is each expert: [B T A] -> [B T A E]. A scatter is refused over cut rows."""
    return experts[..., None] == jnp.arange(count)[None, None, None]
