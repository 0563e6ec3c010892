"""Beam search for translation, as a jitted loop over the cache.

Legend: B rows, S source time, K beams, V vocabulary.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from errors import UsageError
from models import Model
from models.core.spec import Spec
from models.core.types import Cache, Specs, Tree, Variables


def gather_cache_rows(cache: Cache, specs: Specs, rows: Int[Array, "b"]) -> Cache:
    """Gather rows of a cache by index: cache, its specs, rows [B] -> a cache of B rows."""

    def one(spec: Spec, held: Array) -> Array:
        return jnp.take(held, rows, spec.names.index("batch")) if "batch" in spec.names else held

    return jax.tree.map(one, specs, cache)


def normalise_by_length(total: Float[Array, "*b"], length: Int[Array, ""], penalty: float | Float[Array, ""]) -> Array:
    """Log-probabilities over the length penalty: [...], length including the end token [], alpha -> [...], in nats.

    Source: Wu et al. 2016, arXiv:1609.08144, eq. 14, without the coverage penalty.
    """
    return total / ((5 + length) / 6) ** penalty


def beam_search(
    model: Model,
    variables: Variables,
    source: Int[Array | np.ndarray, "b s"],
    source_mask: Float[Array | np.ndarray, "b s"] | None = None,
    *,
    start: int,
    stop: int,
    count: int,
    beams: int = 4,
    penalty: float = 0.6,
) -> tuple[Int[Array, "b n"], Float[Array, "b"]]:
    """Translate each source -> (tokens [B count], filled with `stop` after the end; scores in nats [B]).

    source, source_mask [B S]. Each row keeps K hypotheses. At each step, continuations that end and are among the K
    best become finished; the K best others continue. A row stops when no hypothesis can exceed the best finished score
    (log-probability over the length penalty), or after `count` tokens. It returns the best finished hypothesis, else
    the best unfinished one. One beam is greedy search. Rows are independent of each other.

    Raises UsageError for a model that does not translate, and for values out of range.
    """
    if not {"cached", "encoder_decoder"} <= model.traits:
        raise UsageError(f"family {model.family!r} does not translate; a cached encoder_decoder does")
    for name, whole in (("count", count), ("beams", beams)):
        if not isinstance(whole, int) or whole < 1:
            raise UsageError(f"beam search: {name} must be an integer of 1 or more, not {whole}")
    if not 0 <= penalty < math.inf:
        raise UsageError(f"beam search: penalty must be 0 or more, not {penalty}")
    for name, token in (("start", start), ("stop", stop)):
        if not 0 <= token < model.config.vocab:
            raise UsageError(f"beam search: {name} must be a token below vocab={model.config.vocab}, not {token}")
    source = jnp.asarray(source)
    known = getattr(model.config, "source_vocab", None) or model.config.vocab
    if source.ndim != 2 or not 0 <= int(jnp.min(source, initial=0)) <= int(jnp.max(source, initial=0)) < known:
        raise UsageError(
            f"beam search: source must be [B S] with tokens below {known}, not {source.shape} up to {jnp.max(source)}"
        )
    mask = jnp.ones(source.shape) if source_mask is None else jnp.asarray(source_mask, jnp.float32)
    if mask.shape != source.shape:
        raise UsageError(f"beam search: source_mask must have the source's shape {source.shape}, not {mask.shape}")
    return _beam_search(model, variables, source, mask, start, stop, penalty, count=count, beams=beams)


@partial(jax.jit, static_argnames=("model", "count", "beams"))
def _beam_search(
    model: Model,
    variables: Variables,
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

    def predict(inputs: dict[str, Array], cache: Cache | None) -> Tree:
        out = model.apply(variables, inputs, cache=cache)
        return {"next": jax.nn.log_softmax(out.value[:, -1, :V]), "cache": out.cache}

    def step(state: Tree) -> Tree:
        """Decode one more token."""
        last = jnp.take(state["tokens"], state["n"] - 1, 2).reshape(B * K, 1)
        return _extend_beams({**state, **predict({"tokens": last}, state["cache"])}, table, stop, penalty)

    first = {"tokens": jnp.full((B, 1), start, jnp.int32), "source": source, "source_mask": mask}
    first_step = predict(first, model.cache(B, count, source.shape[1]))
    every = jnp.repeat(jnp.arange(B), K)  # the row of each beam
    none = jnp.full((B, K), -jnp.inf)
    blank = jnp.full((B, K, count), stop, jnp.int32)
    state = {
        "n": jnp.zeros((), jnp.int32),  # tokens decoded
        "next": first_step["next"][every],  # log-probabilities of the next token [B*K V]
        "cache": gather_cache_rows(first_step["cache"], table, every),
        "tokens": blank,
        "total": none.at[:, 0].set(0.0),  # log-probabilities; the search starts with one empty hypothesis
        "finished": {"tokens": blank, "score": none},
    }
    state = _extend_beams(state, table, stop, penalty)

    def can_improve(state: Tree) -> Array:
        """Whether a row's hypotheses could still improve, assuming that all further tokens have probability 1."""
        best = state["finished"]["score"][:, 0]
        if K == 1:  # greedy: stop at the first end
            return jnp.any(best == -jnp.inf)
        return jnp.any(normalise_by_length(jnp.max(state["total"], 1), jnp.asarray(count), penalty) > best)

    state = jax.lax.while_loop(lambda s: (s["n"] < count) & can_improve(s), step, state)
    unfinished = {"tokens": state["tokens"], "score": normalise_by_length(state["total"], state["n"], penalty)}
    has_finished = state["finished"]["score"][:, 0] > -jnp.inf
    result = {}
    for name, x in unfinished.items():
        row_has_finished = jnp.expand_dims(has_finished, range(1, x.ndim))
        result[name] = jnp.where(row_has_finished, state["finished"][name], x)
    best = _top_hypotheses(result, 1)
    return best["tokens"][:, 0], best["score"][:, 0]


def _extend_beams(state: Tree, table: Specs, stop: Array, penalty: Array) -> Tree:
    """Extend every hypothesis by one token, and gather the cache rows of the surviving hypotheses."""
    B, K = state["total"].shape
    n = state["n"]
    V = state["next"].shape[-1]
    scores = (state["total"][:, :, None] + state["next"].reshape(B, K, V)).reshape(B, K * V)
    total, index = jax.lax.top_k(scores, min(2 * K, K * V))  # at most K of the 2 K continuations end
    beam, token = index // V, index % V
    tokens = jnp.take_along_axis(state["tokens"], beam[:, :, None], 1).at[:, :, n].set(token)

    is_stop = token == stop
    rank = jnp.arange(token.shape[1])[None]
    finished = is_stop & (rank < K) & (total > -jnp.inf)
    score = jnp.where(finished, normalise_by_length(total, n + 1, penalty), -jnp.inf)
    new = {"tokens": tokens, "score": score}
    both = {name: jnp.concatenate([held, new[name]], 1) for name, held in state["finished"].items()}

    total, place = jax.lax.top_k(jnp.where(is_stop, -jnp.inf, total), K)
    rows = jnp.arange(B)[:, None] * K + jnp.take_along_axis(beam, place, 1)
    memory = state["cache"]["memory"]  # depends only on the source, so it is the same for all hypotheses of a row
    return {
        "n": n + 1,
        "next": state["next"],
        "cache": {**gather_cache_rows(state["cache"], table, rows.reshape(-1)), "memory": memory},
        "tokens": jnp.take_along_axis(tokens, place[:, :, None], 1),
        "total": total,
        "finished": _top_hypotheses(both, K),
    }


def _top_hypotheses(hypotheses: dict[str, Array], count: int) -> dict[str, Array]:
    """The `count` best hypotheses by score, best first: tokens [B K T], score [B K] -> [B count T], [B count]."""
    score, place = jax.lax.top_k(hypotheses["score"], count)
    return {"tokens": jnp.take_along_axis(hypotheses["tokens"], place[:, :, None], 1), "score": score}
