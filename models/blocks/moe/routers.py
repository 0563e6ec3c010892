"""Routers of mixtures of experts: functions from logits to each token's experts and their weights, one per paper.

Legend: B batch, T time, D width, E experts, A experts per token.

Routers compute in float32, whatever the dtype of activations: among many experts, rounding changes the choice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.core.layers import add_bias, einsum
from models.core.spec import Place, unsharded


class Routes(NamedTuple):
    """The experts of each token, and their weights."""

    experts: Int[Array, "b t a"]
    weights: Float[Array, "b t a"]  # of the experts' outputs, float32
    probs: Float[Array, "b t e"]  # the router's scores of all experts, normalised to sum to 1, float32


def router_logits(x: Float[Array, "b t d"], p: dict[str, Array], place: Place = unsharded) -> Float[Array, "b t e"]:
    """Logits of a linear router, in float32: x [B T D], kernel [D E], optional bias [E] -> [B T E]."""
    with jax.default_matmul_precision("highest"):
        logits = einsum("btd,de->bte", x.astype(jnp.float32), p["kernel"], place("batch seq choice"))
    return add_bias(logits, p["bias"]) if "bias" in p else logits


def softmax_then_top(logits: Float[Array, "b t e"], experts_per_token: int, norm_topk: bool) -> Routes:
    """The largest probabilities of a softmax, normalised to sum to 1 if `norm_topk`: logits [B T E] -> Routes.

    Source: normalised, Jiang et al. 2024, arXiv:2401.04088, section 2.1 (there a softmax over the largest logits,
    which is equal); not normalised, xAI's Grok-1.
    """
    probs = jax.nn.softmax(logits, -1)
    experts, weights = top_k(probs, experts_per_token)
    return Routes(experts, weights / jnp.sum(weights, -1, keepdims=True) if norm_topk else weights, probs)


def top_then_softmax(logits: Float[Array, "b t e"], experts_per_token: int) -> Routes:
    """A softmax over the largest logits: logits [B T E] -> Routes. Source: OpenAI 2025, arXiv:2508.10925, 2.2."""
    experts, largest = top_k(logits, experts_per_token)
    return Routes(experts, jax.nn.softmax(largest, -1), jax.nn.softmax(logits, -1))


def top_then_sigmoid(logits: Float[Array, "b t e"], experts_per_token: int) -> Routes:
    """A sigmoid of each of the largest logits: logits [B T E] -> Routes. Source: Meta 2025, Llama 4's released code."""
    experts, largest = top_k(logits, experts_per_token)
    return Routes(experts, jax.nn.sigmoid(largest), jax.nn.softmax(logits, -1))


def softmax_in_groups(
    logits: Float[Array, "b t e"],
    experts_per_token: int,
    expert_groups: int,
    topk_groups: int,
    routed_scaling_factor: float = 1.0,
) -> Routes:
    """The largest probabilities of a softmax, within the groups that have the largest: logits [B T E] -> Routes.

    The weights are the probabilities times `routed_scaling_factor`, not normalised.
    Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.2.2.
    """
    probs = jax.nn.softmax(logits, -1)
    experts, _ = top_k(mask_to_top_groups(probs, expert_groups, topk_groups, best=1), experts_per_token)
    return Routes(experts, take_experts(probs, experts) * routed_scaling_factor, probs)


def sigmoid_in_groups(
    logits: Float[Array, "b t e"],
    bias: Float[Array, " e"],
    experts_per_token: int,
    expert_groups: int,
    topk_groups: int,
    norm_topk: bool = True,
    routed_scaling_factor: float = 1.0,
) -> Routes:
    """The largest biased sigmoids, within the groups with the largest sums of two: logits [B T E], bias [E] -> Routes.

    The bias affects the choice and not the weights. Source: DeepSeek-AI 2024, arXiv:2412.19437, eq. 12 to 16.
    """
    scores = jax.nn.sigmoid(logits)
    experts, _ = top_k(
        mask_to_top_groups(add_bias(scores, bias), expert_groups, topk_groups, best=2), experts_per_token
    )
    weights = take_experts(scores, experts)
    if norm_topk:
        weights = weights / (jnp.sum(weights, -1, keepdims=True) + 1e-20)
    return Routes(experts, weights * routed_scaling_factor, scores / jnp.sum(scores, -1, keepdims=True))


def mask_to_top_groups(
    scores: Float[Array, "b t e"], expert_groups: int, topk_groups: int, best: int
) -> Float[Array, "b t e"]:
    """Scores [B T E] -> [B T E], set to -inf outside of the `topk_groups` best groups.

    A group's score is the sum of its `best` largest scores.
    """
    if topk_groups == expert_groups:
        return scores
    B, T, E = scores.shape
    grouped = scores.reshape(B, T, expert_groups, E // expert_groups)
    sums = jnp.sum(jax.lax.top_k(jax.lax.stop_gradient(grouped), best)[0], -1)
    chosen = jnp.any(one_hot(top_k(sums, topk_groups)[0], expert_groups), 2)
    return jnp.where(chosen[..., None], grouped, -jnp.inf).reshape(B, T, E)


def top_k(values: Float[Array, "b t e"], k: int) -> tuple[Int[Array, "b t a"], Float[Array, "b t a"]]:
    """Indices of the k largest values (the first among equals), and those values: [B T E] -> [B T A], [B T A]."""
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(values), k)
    return experts, take_experts(values, experts)


def take_experts(values: Float[Array, "b t e"], experts: Int[Array, "b t a"]) -> Float[Array, "b t a"]:
    """The values at each token's experts: values [B T E], experts [B T A] -> [B T A]."""
    return jnp.sum(jnp.where(one_hot(experts, values.shape[-1]), values[:, :, None], 0), -1)


def one_hot(experts: Int[Array, "b t a"], count: int) -> Bool[Array, "b t a e"]:
    """One-hot experts: [B T A] -> [B T A E]. A comparison, as JAX refuses a scatter over sharded rows."""
    return experts[..., None] == jnp.arange(count)[None, None, None]
