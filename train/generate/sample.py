"""Text generation: one prefill of all prompts, then a jitted decode loop over the cache.

Legend: B prompts, T time, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from errors import UsageError
from models import Model
from models.core.layers import compute_logits
from models.core.types import Tree, Variables

T = TypeVar("T")
CHUNK = 16  # tokens that are decoded per call, before the host sees them
FINISHED = -1  # fills a row after its end


@dataclass(frozen=True)
class Sampling:
    """How to sample the next token. Raises UsageError for values out of range."""

    temperature: float = 1.0  # 0: greedy
    top_k: int | None = None  # sample from the k most likely tokens
    top_p: float | None = None  # sample from the smallest set of most likely tokens with this total probability
    min_p: float | None = None  # sample from tokens with at least this fraction of the largest probability
    repetition: float = 1.0  # penalty on the logits of tokens that already occurred; 1: none
    stop: tuple[int, ...] = ()  # tokens that end a text

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or 0 < self.temperature < 1e-3:
            raise UsageError(f"temperature must be 0, or 0.001 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k must be 1 or more, not {self.top_k}")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, not {share}")
        if not 0 < self.repetition < math.inf:
            raise UsageError(f"repetition_penalty must be above 0 (1: none), not {self.repetition}")


def filter_logits(logits: Float[Array, "b v"], sampling: Sampling, seen: Bool[Array, "b v"]) -> Float[Array, "b v"]:
    """Logits with excluded tokens at -inf: logits [B V], seen (tokens that already occurred) [B V] -> [B V].

    Source: repetition penalty, Keskar et al. 2019, arXiv:1909.05858, section 4.1 (negative logits are multiplied, as in
    transformers); top-k, Fan et al. 2018, arXiv:1805.04833; top-p, Holtzman et al. 2020, arXiv:1904.09751, eq. 2;
    min-p, Nguyen et al. 2024, arXiv:2407.01082, section 3. The penalty applies before the temperature, the others after
    it in this order.
    """
    if sampling.repetition != 1:
        penalised = jnp.where(logits > 0, logits / sampling.repetition, logits * sampling.repetition)
        logits = jnp.where(seen, penalised, logits)
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        floor = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if sampling.top_p is not None:
        order = jnp.argsort(-logits, -1)
        sorted_ = jax.nn.softmax(jnp.take_along_axis(logits, order, -1), -1)
        before = jnp.cumsum(sorted_, -1) - sorted_  # total probability of the more likely tokens
        keep = jnp.take_along_axis(before < sampling.top_p, jnp.argsort(order, -1), -1)
        logits = jnp.where(keep, logits, -jnp.inf)
    if sampling.min_p is not None:
        floor = jnp.max(logits, -1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return logits


def sample_token(
    logits: Float[Array, "b v"], keys: Key[Array, "b"], sampling: Sampling, seen: Bool[Array, "b v"]
) -> Int[Array, "b"]:
    """One token per row, each with its own key: logits [B V], keys [B], seen [B V] -> [B]."""
    logits = filter_logits(logits, sampling, seen)
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


@partial(jax.jit, static_argnames=("model", "count", "sampling"))
def prefill(
    model: Model,
    variables: Variables,
    tokens: Int[Array, "b t"],
    mask: Float[Array, "b t"],
    finished: Bool[Array, "b"],
    keys: Key[Array, "b"],
    sampled: Int[Array, ""],
    *,
    count: int,
    sampling: Sampling,
) -> Tree:
    """Process the prompts and sample the first of `count` tokens per row -> the decoding state.

    tokens, mask [B T]: prompts with padding on the left, mask 0 there; finished [B]; `sampled` [] tokens per row were
    sampled before.

    The state holds the cache, each row's newest token and its position [B], the tokens seen [B V] (used by the
    repetition penalty), whether the row is finished [B], and the number of sampled tokens [].
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


def _append_token(state: Tree, logits: Array, keys: Array, sampling: Sampling) -> Tree:
    """The state with one more token per row."""
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
    model: Model, variables: Variables, state: Tree, keys: Key[Array, "b"], *, count: int, sampling: Sampling
) -> tuple[Tree, Int[Array, "b n"]]:
    """Decode `count` tokens per row -> (state, tokens [B count], FINISHED after a row's end)."""

    def one(state: Tree, _: None) -> tuple[Tree, Array]:
        inputs = {"tokens": state["token"][:, None], "position": state["position"][:, None]}
        out = model.apply(variables, inputs, cache=state["cache"])
        state = _append_token({**state, "cache": out.cache}, out.value[:, -1], keys, sampling)
        return state, state["emitted"]

    state, emitted = jax.lax.scan(one, state, None, count)
    return state, emitted.T


@dataclass
class Throughput:
    """Tokens of prefill and decode over all rows, and the seconds they took, without compilation."""

    clock: Callable[[], float]
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """Both rates in one line."""
        names = {"prefill": "prefill", "decode": "decode"}
        rates = {name: (self.tokens[name], self.seconds[name]) for name in names if name in self.tokens}
        return ", ".join(
            f"{names[k]}: {n:,} tokens in {s:.3f} s ({n / s:,.0f} a second)" for k, (n, s) in rates.items()
        )


def generate(
    model: Model,
    variables: Variables,
    prompts: Sequence[np.ndarray],
    key: Key[Array, ""],
    *,
    count: int,
    sampling: Sampling | None = None,
    throughput: Throughput | None = None,
) -> Iterator[np.ndarray]:
    """Generate `count` tokens after each of B prompts [T_i] -> chunks of tokens [B n], FINISHED after a row's end.

    Row i samples with `key` folded with i, so it does not depend on the other rows. A text that fills the context is
    truncated to its newest half, prefilled again, and continued.
    Raises UsageError for an empty prompt, a model that is not a cached language model, and illegal settings.
    """
    sampling = sampling or Sampling()
    if not {"cached", "language_model"} <= model.traits:
        raise UsageError(f"family {model.family!r} does not generate text; sample needs a cached language model")
    if count < 1:
        raise UsageError(f"the number of tokens to generate must be 1 or more, not {count}")
    if not all(len(p) for p in prompts) or not len(prompts):
        raise UsageError("the prompt is empty; give --prompt some text")
    context = model.config.context
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(prompts)))
    seen = [np.asarray(p, np.int32) for p in prompts]
    sampled = 0
    finished = np.zeros(len(prompts), bool)
    while sampled < count and not finished.all():
        # finished rows are not prefilled again
        seen = [s[-1:] if end else s for s, end in zip(seen, finished, strict=True)]
        seen = [s if len(s) <= context else s[-max(1, context // 2) :] for s in seen]
        room = min(count - sampled, context - max(map(len, seen)) + 1)
        for new in _generate_in_context(
            model, variables, seen, finished, row_keys, sampled, room, sampling, throughput
        ):
            seen = [np.concatenate([s, row[row != FINISHED]]) for s, row in zip(seen, new, strict=True)]
            finished = np.isin([s[-1] for s in seen], sampling.stop)
            sampled += new.shape[1]
            yield new
            if finished.all():
                break


def _generate_in_context(
    model: Model,
    variables: Variables,
    prompts: list[np.ndarray],
    finished: np.ndarray,
    keys: Array,
    sampled: int,
    count: int,
    sampling: Sampling,
    throughput: Throughput | None,
) -> Iterator[np.ndarray]:
    """Generate `count` tokens, for which the context has room, in chunks. `sampled` tokens per row came before."""
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


def _run_timed(throughput: Throughput | None, what: str, work: Callable[[], T], tokens: int) -> T:
    """The result of `work`. To measure its throughput, it runs twice: once to compile, once timed."""
    if throughput is None:
        return work()
    jax.block_until_ready(work())
    start = throughput.clock()
    found = jax.block_until_ready(work())
    throughput.tokens[what] = throughput.tokens.get(what, 0) + tokens
    throughput.seconds[what] = throughput.seconds.get(what, 0.0) + throughput.clock() - start
    return found
