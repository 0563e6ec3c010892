"""Beam search: the best that a translator finds to say of a source, by a jitted loop over its cache.

Legend: B rows, S source time, K beams, V vocabulary.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from errors import UsageError
from models import Model
from models.core.spec import Spec


def gather_cache_rows(cache: Any, table: Any, rows: Int[Array, "b"]) -> Any:
    """A cache whose rows are those of another, by number: cache, its table, rows [B] -> a cache of B rows."""

    def one(spec: Spec, held: Array) -> Array:
        return jnp.take(held, rows, spec.names.index("batch")) if "batch" in spec.names else held

    return jax.tree.map(one, table, cache)


def normalise_by_length(total: Float[Array, "*b"], length: Int[Array, ""], penalty: float | Float[Array, ""]) -> Array:
    """Log-probabilities by the length penalty: [...], tokens with the end token [], alpha -> [...], in nats.

    Source: Wu et al. 2016, arXiv:1609.08144, eq. 14, without its coverage.
    """
    return total / ((5 + length) / 6) ** penalty


def beam_search(
    model: Model,
    variables: Any,
    source: Int[Array | np.ndarray, "b s"],
    source_mask: Float[Array | np.ndarray, "b s"] | None = None,
    *,
    start: int,
    stop: int,
    count: int,
    beams: int = 4,
    penalty: float = 0.6,
) -> tuple[Int[Array, "b n"], Float[Array, "b"]]:
    """What is said of each source, `stop` after its end, and its score in nats: source, mask [B S] -> [B count], [B].

    K hypotheses are kept a row. At each step those of their continuations that end, and are among the K best, are put
    by; the K best that do not end go on. A row is done when none of these can come to a better score (log-probability
    by the length penalty) than the best that has ended, or after `count` tokens, and that one is told; if none has
    ended, the best that there is. One beam is the greedy search. What a row says does not hang on the others.

    Raises UsageError for a model that translates nothing, and for values out of their range.
    """
    if not {"cached", "encoder_decoder"} <= model.traits:
        raise UsageError(f"family {model.family!r} does not translate; a cached encoder_decoder does")
    for name, whole in (("count", count), ("beams", beams)):
        if not isinstance(whole, int) or whole < 1:
            raise UsageError(f"translation wants {name} a whole number of 1 or more, not {whole}")
    if not 0 <= penalty < math.inf:
        raise UsageError(f"translation wants a penalty of 0 or more, not {penalty}")
    for name, token in (("start", start), ("stop", stop)):
        if not 0 <= token < model.config.vocab:
            raise UsageError(f"translation wants a {name} token below vocab={model.config.vocab}, not {token}")
    source = jnp.asarray(source)
    known = getattr(model.config, "source_vocab", None) or model.config.vocab
    if source.ndim != 2 or not 0 <= int(jnp.min(source, initial=0)) <= int(jnp.max(source, initial=0)) < known:
        raise UsageError(
            f"translation wants a source [B S] of tokens below {known}, not {source.shape} up to {jnp.max(source)}"
        )
    mask = jnp.ones(source.shape) if source_mask is None else jnp.asarray(source_mask, jnp.float32)
    if mask.shape != source.shape:
        raise UsageError(f"translation wants a source_mask like the source, {source.shape}, not {mask.shape}")
    return _beam_search(model, variables, source, mask, start, stop, penalty, count=count, beams=beams)


@partial(jax.jit, static_argnames=("model", "count", "beams"))
def _beam_search(
    model: Model,
    variables: Any,
    source: Array,
    mask: Array,
    start: Array,
    stop: Array,
    penalty: Array,
    *,
    count: int,
    beams: int,
) -> tuple[Array, Array]:
    B, K, V = source.shape[0], beams, model.config.vocab
    table = model.cache_specs(B * K, count, source.shape[1])

    def read(inputs: dict[str, Array], cache: Any) -> dict[str, Any]:
        out = model.apply(variables, inputs, cache=cache)
        return {"next": jax.nn.log_softmax(out.value[:, -1, :V]), "cache": out.cache}

    def step(state: dict[str, Any]) -> dict[str, Any]:
        """Read what was written last, and write one token more."""
        last = jnp.take(state["tokens"], state["n"] - 1, 2).reshape(B * K, 1)
        return _extend_beams({**state, **read({"tokens": last}, state["cache"])}, table, stop, penalty)

    first = {"tokens": jnp.full((B, 1), start, jnp.int32), "source": source, "source_mask": mask}
    begun = read(first, model.cache(B, count, source.shape[1]))
    every, none = jnp.repeat(jnp.arange(B), K), jnp.full((B, K), -jnp.inf)
    blank = jnp.full((B, K, count), stop, jnp.int32)
    state = {
        "n": jnp.zeros((), jnp.int32),  # tokens written
        "next": begun["next"][every],  # log-probabilities of the next, [B*K V]
        "cache": gather_cache_rows(begun["cache"], table, every),
        "tokens": blank,
        "total": none.at[:, 0].set(0.0),  # log-probabilities; at first there is one hypothesis, of no tokens
        "ended": {"tokens": blank, "score": none},
    }
    state = _extend_beams(state, table, stop, penalty)

    def hopes(state: dict[str, Any]) -> Array:
        """Whether a row's hypotheses could still end better, at best with nothing but certain tokens up to the last."""
        best = state["ended"]["score"][:, 0]
        if K == 1:  # greedy: the first end it is
            return jnp.any(best == -jnp.inf)
        return jnp.any(normalise_by_length(jnp.max(state["total"], 1), jnp.asarray(count), penalty) > best)

    state = jax.lax.while_loop(lambda s: (s["n"] < count) & hopes(s), step, state)
    open_ = {"tokens": state["tokens"], "score": normalise_by_length(state["total"], state["n"], penalty)}
    any_ = state["ended"]["score"][:, 0] > -jnp.inf
    told = {k: jnp.where(jnp.expand_dims(any_, range(1, v.ndim)), state["ended"][k], v) for k, v in open_.items()}
    best = _top_hypotheses(told, 1)
    return best["tokens"][:, 0], best["score"][:, 0]


def _extend_beams(state: dict[str, Any], table: Any, stop: Array, penalty: Array) -> dict[str, Any]:
    """The state with one more token a hypothesis, its cache's rows where the hypotheses now are."""
    (B, K), n = state["total"].shape, state["n"]
    V = state["next"].shape[-1]
    every = (state["total"][:, :, None] + state["next"].reshape(B, K, V)).reshape(B, K * V)
    total, index = jax.lax.top_k(every, min(2 * K, K * V))  # of 2 K continuations no more than K end
    beam, token = index // V, index % V
    tokens = jnp.take_along_axis(state["tokens"], beam[:, :, None], 1).at[:, :, n].set(token)

    ends, rank = token == stop, jnp.arange(token.shape[1])[None]
    ended = ends & (rank < K) & (total > -jnp.inf)
    score = jnp.where(ended, normalise_by_length(total, n + 1, penalty), -jnp.inf)
    new = {"tokens": tokens, "score": score}
    both = {name: jnp.concatenate([held, new[name]], 1) for name, held in state["ended"].items()}

    total, place = jax.lax.top_k(jnp.where(ends, -jnp.inf, total), K)
    rows = jnp.arange(B)[:, None] * K + jnp.take_along_axis(beam, place, 1)
    memory = state["cache"]["memory"]  # is of the source, and so that of all hypotheses of a row
    return {
        "n": n + 1,
        "next": state["next"],
        "cache": {**gather_cache_rows(state["cache"], table, rows.reshape(-1)), "memory": memory},
        "tokens": jnp.take_along_axis(tokens, place[:, :, None], 1),
        "total": total,
        "ended": _top_hypotheses(both, K),
    }


def _top_hypotheses(hypotheses: dict[str, Array], count: int) -> dict[str, Array]:
    """The best by score, best first: tokens [B K T], score [B K] -> the same of `count`."""
    score, place = jax.lax.top_k(hypotheses["score"], count)
    return {"tokens": jnp.take_along_axis(hypotheses["tokens"], place[:, :, None], 1), "score": score}
