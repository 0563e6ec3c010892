"""Text from a language model: one prefill, then one jitted loop that feeds each token back through the cache."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from errors import UsageError
from models import Model


def choose(logits: Float[Array, "b v"], key: Key[Array, ""], temperature: float, top_k: int | None) -> Int[Array, "b"]:
    """One token a row: [B V] -> [B]. Temperature 0 takes the likeliest; top_k leaves the k likeliest alone."""
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    if top_k is not None:
        floor = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.random.categorical(key, logits / temperature, -1).astype(jnp.int32)


@partial(jax.jit, static_argnames=("model", "count", "temperature", "top_k"))
def continue_tokens(
    model: Model,
    variables: Any,
    prompt: Int[Array, "b t"],
    key: Key[Array, ""],
    *,
    count: int,
    temperature: float,
    top_k: int | None,
) -> Int[Array, "b count"]:
    """`count` tokens after a prompt, by the cache: prompt [B T] -> [B count]; T + count - 1 must fit the context."""
    cache = model.cache(prompt.shape[0], prompt.shape[1] + count - 1)
    draw = partial(choose, temperature=temperature, top_k=top_k)
    out = model.apply(variables, {"tokens": prompt}, cache=cache)
    first = draw(out.value[:, -1], jax.random.fold_in(key, 0))

    def next_one(carry: Any, i: Array) -> tuple[Any, Array]:
        token, cache = carry
        out = model.apply(variables, {"tokens": token[:, None]}, cache=cache)
        token = draw(out.value[:, -1], jax.random.fold_in(key, i))
        return (token, out.cache), token

    _, rest = jax.lax.scan(next_one, (first, out.cache), jnp.arange(1, count))
    return jnp.concatenate([first[:, None], rest.T], 1)


def generate(
    model: Model,
    variables: Any,
    prompt: np.ndarray,
    key: Array,
    *,
    count: int,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[np.ndarray]:
    """`count` tokens after a prompt [T], in chunks as they are made -> arrays [n].

    Where the context is full, the newest half of it is read again and the text goes on from there.
    Raises UsageError for an empty prompt, a family that is no cached language model, and bad settings.
    """
    if "cached" not in model.traits:
        raise UsageError(f"family {model.family!r} does not generate text; sample needs a cached language model")
    if not 0 <= temperature < math.inf or 0 < temperature < 1e-3 or (top_k is not None and top_k < 1) or count < 1:
        raise UsageError(
            f"sampling wants a temperature 0 or >= 0.001, top_k >= 1, tokens >= 1; not {temperature}, {top_k}, {count}"
        )
    if not len(prompt):
        raise UsageError("the prompt is empty; give --prompt some text")
    context, text, chunk = model.config.context, np.asarray(prompt, np.int32), 0
    while count:
        seen = text if len(text) <= max(1, context // 2) else text[-max(1, context // 2) :]
        if chunk == 0 and len(text) < context:
            seen = text
        room = min(count, context - len(seen) + 1)
        made = continue_tokens(
            model,
            variables,
            jnp.asarray(seen)[None],
            jax.random.fold_in(key, chunk),
            count=room,
            temperature=temperature,
            top_k=top_k,
        )
        new = np.asarray(made[0])
        yield new
        text, count, chunk = np.concatenate([text, new]), count - room, chunk + 1
