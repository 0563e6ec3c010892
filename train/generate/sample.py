"""Text from a language model: the prompts are read at once, then tokens are written by a jitted loop over the cache.

Legend: B prompts, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from errors import UsageError
from models import Model
from models.core.layers import compute_logits

CHUNK = 16  # tokens that are written before the host looks at them
FINISHED = -1  # what stands after a text's end


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises UsageError for values out of their range."""

    temperature: float = 1.0  # 0 takes the likeliest
    top_k: int | None = None  # draw among the so many likeliest
    top_p: float | None = None  # among the fewest likeliest that have this probability together
    min_p: float | None = None  # among those that have this share of the likeliest's probability
    repetition: float = 1.0  # by how much the logits of tokens that were there are lowered
    stop: tuple[int, ...] = ()  # tokens that end a text

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or 0 < self.temperature < 1e-3:
            raise UsageError(f"sampling wants a temperature of 0, or of 0.001 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"sampling wants a top_k of 1 or more, not {self.top_k}")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise UsageError(f"sampling wants a {name} above 0, at most 1, not {share}")
        if not 0 < self.repetition < math.inf:
            raise UsageError(f"sampling wants a repetition penalty above 0 (1 is none), not {self.repetition}")


def filter_logits(logits: Float[Array, "b v"], sampling: Sampling, seen: Bool[Array, "b v"]) -> Float[Array, "b v"]:
    """Logits to draw by, -inf where a token is out: logits [B V], tokens that were there [B V] -> [B V].

    Source: repetition penalty, Keskar et al. 2019, arXiv:1909.05858, section 4.1 (negative logits are multiplied, as in
    transformers); top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2020, arXiv:1904.09751, eq. 2;
    min-p, Nguyen et al. 2024, arXiv:2407.01082, section 3. They apply in this order, after the temperature.
    """
    if sampling.repetition != 1:
        lowered = jnp.where(logits > 0, logits / sampling.repetition, logits * sampling.repetition)
        logits = jnp.where(seen, lowered, logits)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        floor = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if sampling.top_p is not None:
        order = jnp.argsort(-logits, -1)
        sorted_ = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
        before = jnp.cumsum(sorted_, -1) - sorted_  # probability of all that are likelier
        keep = jnp.take_along_axis(before < sampling.top_p, jnp.argsort(order, -1), -1)
        logits = jnp.where(keep, logits, -jnp.inf)
    if sampling.min_p is not None:
        floor = jnp.max(logits, -1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits


def sample_token(
    logits: Float[Array, "b v"], keys: Key[Array, "b"], sampling: Sampling, seen: Bool[Array, "b v"]
) -> Int[Array, "b"]:
    """One token a row, each by its own key: logits [B V], keys [B], tokens that were there [B V] -> [B]."""
    logits = filter_logits(logits, sampling, seen)
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@partial(jax.jit, static_argnames=("model", "count", "sampling"))
def prefill(
    model: Model,
    variables: Any,
    tokens: Int[Array, "b t"],
    mask: Float[Array, "b t"],
    finished: Bool[Array, "b"],
    keys: Key[Array, "b"],
    sampled: Int[Array, ""],
    *,
    count: int,
    sampling: Sampling,
) -> dict[str, Any]:
    """The state after prompts, with a first token of `room`: tokens, mask [B T], 0 at padding on the left, ended [B].

    `drawn` tokens a row were drawn before [].

    The state holds the cache, of each row the newest token and its place [B], the tokens that were there [B V] (where
    the penalty asks for them), whether it has ended [B], and how many were drawn [].
    """
    position = jnp.cumsum(mask, 1).astype(jnp.int32) - 1
    inputs = {"tokens": tokens, "mask": mask, "position": jnp.where(mask > 0, position, -1)}
    cache = model.cache(tokens.shape[0], tokens.shape[1] + count - 1)
    out = model.apply(variables, inputs, cache=cache, logits=False)
    last = compute_logits(out.value.replace(x=out.value.x[:, -1:]))[:, 0]
    rows = jnp.arange(tokens.shape[0])[:, None]
    seen = jnp.zeros(last.shape, bool)
    if sampling.repetition != 1:
        seen = seen.at[rows, tokens].max(mask > 0)
    state = {"cache": out.cache, "seen": seen, "position": position[:, -1], "finished": finished}
    state["sampled"] = sampled
    return _append_token(state, last, keys, sampling)


def _append_token(state: dict[str, Any], logits: Array, keys: Array, sampling: Sampling) -> dict[str, Any]:
    """The state with one more token a row."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, state["sampled"])
    token = jnp.where(state["finished"], 0, sample_token(logits, own, sampling, state["seen"]))
    seen = state["seen"]
    if sampling.repetition != 1:
        seen = seen.at[jnp.arange(token.shape[0]), token].max(~state["finished"])
    stops = (
        jnp.isin(token, jnp.asarray(sampling.stop, jnp.int32)) if sampling.stop else jnp.zeros_like(state["finished"])
    )
    emitted = jnp.where(state["finished"], FINISHED, token)
    new = {"token": token, "emitted": emitted, "finished": state["finished"] | stops, "seen": seen}
    return {**state, **new, "position": state["position"] + 1, "sampled": state["sampled"] + 1}


@partial(jax.jit, static_argnames=("model", "count", "sampling"))
def decode(
    model: Model, variables: Any, state: dict[str, Any], keys: Key[Array, "b"], *, count: int, sampling: Sampling
) -> tuple[dict[str, Any], Int[Array, "b n"]]:
    """`count` more tokens a row -> the state after them, and the tokens [B count], FINISHED after a row's end."""

    def one(state: dict[str, Any], _: None) -> tuple[dict[str, Any], Array]:
        inputs = {"tokens": state["token"][:, None], "position": state["position"][:, None]}
        out = model.apply(variables, inputs, cache=state["cache"])
        state = _append_token({**state, "cache": out.cache}, out.value[:, -1], keys, sampling)
        return state, state["emitted"]

    state, emitted = jax.lax.scan(one, state, None, count)
    return state, emitted.T


@dataclass
class Throughput:
    """Tokens of all rows that were read and written, and the seconds it took, without compiling."""

    clock: Callable[[], float]
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Both rates."""
        names = {"prefill": "prefill", "decode": "decode"}
        rates = {name: (self.tokens[name], self.seconds[name]) for name in names if name in self.tokens}
        return ", ".join(
            f"{names[k]}: {n:,} tokens in {s:.3f} s ({n / s:,.0f} a second)" for k, (n, s) in rates.items()
        )


def generate(
    model: Model,
    variables: Any,
    prompts: Sequence[np.ndarray],
    key: Key[Array, ""],
    *,
    count: int,
    sampling: Sampling | None = None,
    throughput: Throughput | None = None,
) -> Iterator[np.ndarray]:
    """`count` tokens after each of B prompts [T_i], in chunks as they are made -> arrays [B n], FINISHED after an end.

    Row i draws by the key's fold with i, and what it says does not hang on the other rows. A text that has filled the
    context is cut to its newest half, which is read again, and goes on from there.
    Raises UsageError for an empty prompt, a model that is no cached language model, and bad settings.
    """
    sampling = sampling or Sampling()
    if not {"cached", "language_model"} <= model.traits:
        raise UsageError(f"family {model.family!r} does not generate text; sample needs a cached language model")
    if count < 1:
        raise UsageError(f"sampling wants a count of 1 token or more, not {count}")
    if not all(len(p) for p in prompts) or not len(prompts):
        raise UsageError("the prompt is empty; give --prompt some text")
    context, rows = model.config.context, jnp.arange(len(prompts))
    own, sampled, seen = (
        jax.vmap(jax.random.fold_in, (None, 0))(key, rows),
        0,
        [np.asarray(p, np.int32) for p in prompts],
    )
    finished = np.zeros(len(prompts), bool)
    while sampled < count and not finished.all():
        seen = [s[-1:] if end else s for s, end in zip(seen, finished, strict=True)]  # what has ended is not read again
        seen = [s if len(s) <= context else s[-max(1, context // 2) :] for s in seen]
        room = min(count - sampled, context - max(map(len, seen)) + 1)
        for new in _generate_in_context(model, variables, seen, finished, own, sampled, room, sampling, throughput):
            seen = [np.concatenate([s, row[row != FINISHED]]) for s, row in zip(seen, new, strict=True)]
            finished, sampled = np.isin([s[-1] for s in seen], sampling.stop), sampled + new.shape[1]
            yield new
            if finished.all():
                break


def _generate_in_context(
    model: Model,
    variables: Any,
    prompts: list[np.ndarray],
    finished: np.ndarray,
    keys: Array,
    sampled: int,
    count: int,
    sampling: Sampling,
    throughput: Throughput | None,
) -> Iterator[np.ndarray]:
    """`count` tokens after prompts, for which the context has room, in chunks; `drawn` were before them."""
    longest = max(map(len, prompts))
    tokens = np.stack([np.pad(p, (longest - len(p), 0)) for p in prompts])
    mask = np.stack([np.pad(np.ones(len(p), np.float32), (longest - len(p), 0)) for p in prompts])
    begin = partial(
        prefill, model, variables, tokens, mask, finished, keys, np.int32(sampled), count=count, sampling=sampling
    )
    state = _run_timed(throughput, "prefill", begin, int(mask.sum()))
    yield np.asarray(state["emitted"])[:, None]
    count -= 1
    while count:
        size = min(count, CHUNK)
        go_on = partial(decode, model, variables, state, keys, count=size, sampling=sampling)
        state, emitted = _run_timed(throughput, "decode", go_on, size * len(prompts))
        yield np.asarray(emitted)
        count -= size


def _run_timed(throughput: Throughput | None, what: str, work: Callable[[], Any], tokens: int) -> Any:
    """What the work gives; where its pace is asked for, it is done once before, so that it is compiled."""
    if throughput is None:
        return work()
    jax.block_until_ready(work())
    start = throughput.clock()
    found = jax.block_until_ready(work())
    throughput.tokens[what] = throughput.tokens.get(what, 0) + tokens
    throughput.seconds[what] = throughput.seconds.get(what, 0.0) + throughput.clock() - start
    return found
