"""Scaled dot-product attention by one of several backends.

Legend: B batch, T query time, S key time, N query heads, K key-value heads, H head width, W value width.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import auto_axes
from jaxtyping import Array, Float, Key

from errors import UsageError
from models.blocks.attention.blockwise import blockwise
from models.blocks.attention.kernels import LANES, cudnn, splash, xla
from models.blocks.attention.mask import AttentionMask
from models.core.intermediates import sow
from models.core.layers import MASK_VALUE, dropout, einsum, reshard, softcap
from models.core.platform import compile_platform
from models.core.spec import Place, unsharded
from models.core.types import OutSharding

FEATURES = {  # what a call may need of a backend
    "positions": "positions other than 0, 1, 2 … (padding, a cache)",
    "segments": "segments",
    "window": "a sliding window",
    "both ways": "attention to later keys (not causal)",
    "window both ways": "attention to later keys in a window",
    "groups": "fewer key-value heads than query heads",
    "values": "values of a width other than that of keys",
    "dropout": "dropout on the weights",
    "soft cap": "a soft cap on the scores",
    "sinks": "sinks",
    "float32": "float32",
    "bfloat16": "bfloat16",
    "cp": "time sharded by the mesh axis cp",
}


def reference(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k w"],
    mask: AttentionMask,
    place: Place = unsharded,
    *,
    scale: float | Float[Array, ""],
    dropout_rate: float = 0.0,
    keys: Key[Array, "b"] | None = None,
    logit_softcap: float | None = None,
    sinks: Float[Array, " n"] | None = None,
) -> Float[Array, "b t n w"]:
    """Attention by two products, with the softmax in float32: q [B T N H], k [B S K H], v [B S K W] -> [B T N W].

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; dropout on the weights as in its section 5.4; fewer key-value
    heads than queries as in Ainslie et al. 2023, arXiv:2305.13245; the soft cap as in Gemma 2, 2024, arXiv:2408.00118;
    sinks as in gpt-oss, 2025, arXiv:2508.10925.
    """
    scores_spec = place("batch heads query key")
    one_head = k.shape[2] == 1  # one key head is shared without a copy
    if one_head:
        k, v = (reshard(x[:, :, 0], place("batch key head_dim")) for x in (k, v))
    else:
        k, v = (repeat_kv(x, q.shape[2], place("batch key heads head_dim")) for x in (k, v))
    scores = einsum("btnh,bsh->bnts" if one_head else "btnh,bsnh->bnts", q, k, scores_spec).astype(jnp.float32) * scale
    if logit_softcap is not None:
        scores = softcap(scores, logit_softcap)
    scores = jnp.where(mask.array[:, None], scores, MASK_VALUE)
    if sinks is None:
        weights = jax.nn.softmax(scores, -1)
    else:
        sunk = reshard(sinks.astype(jnp.float32), place("heads"))[None, :, None, None]
        weights = jnp.exp(scores - jnp.logaddexp(jax.nn.logsumexp(scores, -1, keepdims=True), sunk))
    sow("attention_weights", weights)
    weights = dropout(weights.astype(q.dtype), keys, dropout_rate, "attention", scores_spec)
    return einsum("bnts,bsh->btnh" if one_head else "bnts,bsnh->btnh", weights, v, place("batch seq heads head_dim"))


def repeat_kv(x: Float[Array, "b s k h"], heads: int, over: OutSharding = None) -> Float[Array, "b s n h"]:
    """Repeat each key-value head for the query heads of its group: x [B S K H] -> [B S N H]."""
    group = heads // x.shape[2]
    if group == 1:
        return x if over is None else reshard(x, over)
    if over is None:
        return jnp.repeat(x, group, 2)
    return auto_axes(lambda x: jnp.repeat(x, group, 2), out_sharding=over)(x)


def with_shard_map(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Run a kernel by `jax.shard_map` on each device's rows, heads and, under cp, queries."""

    def run(
        q: Array, k: Array, v: Array, mask: AttentionMask, place: Place, *, scale: float | Array, **more: Any
    ) -> Array:
        if isinstance(scale, jax.Array):  # kernels take a static scale
            q, scale = (q * scale).astype(q.dtype), 1.0
        arrays = {name: more.pop(name) for name in ("sinks",) if name in more}
        local = partial(kernel, scale=scale, **more)
        repeated_spec = place("batch key heads head_dim")
        if repeated_spec is None:
            return local(q, k, v, mask, **arrays)
        grouped = place("kv_heads") == place("heads")  # else a device may lack the keys of its queries
        k, v = (k, v) if grouped else (repeat_kv(x, q.shape[2], repeated_spec) for x in (k, v))
        q_spec = place("batch seq heads head_dim")
        k_spec = place("batch key kv_heads head_dim") if grouped else repeated_spec

        def positions(x: Array, time: str) -> OutSharding:
            return place(f"{'one' if x.shape[0] == 1 else 'batch'} {time}")

        mask_specs = dataclasses.replace(
            mask,
            q_index=positions(mask.q_index, "seq"),
            k_index=positions(mask.k_index, "key"),
            segments=None if mask.segments is None else (place("batch seq"), place("batch key")),
        )
        specs = (q_spec, k_spec, k_spec, mask_specs, {name: place("heads") for name in arrays})
        mapped = jax.shard_map(
            lambda q, k, v, mask, arrays: local(q, k, v, mask, **arrays),
            in_specs=specs,
            out_specs=q_spec,
            check_vma=False,  # kernels do not declare over which axes their results vary
        )
        return mapped(*jax.tree.map(reshard, (q, k, v, mask, arrays), specs))

    return run


@dataclass(frozen=True)
class Backend:
    """A way to compute attention, and the features it supports."""

    run: Callable[..., Array]
    supports: frozenset[str]  # keys of FEATURES
    platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
    length: int = 1  # T and S must be multiples of it
    width: int = 1  # H must be a multiple of it


_EVERY = frozenset(FEATURES)
BACKENDS = {
    "reference": Backend(reference, _EVERY),
    "xla": Backend(with_shard_map(xla), _EVERY - {"values", "dropout", "soft cap", "sinks"}),
    "blockwise": Backend(with_shard_map(blockwise), _EVERY - {"dropout"}),
    "cudnn": Backend(
        with_shard_map(cudnn), frozenset({"window", "both ways", "groups", "bfloat16"}), ("gpu",), width=8
    ),
    "splash": Backend(
        with_shard_map(splash), _EVERY - {"positions", "values", "dropout", "cp"}, ("tpu",), length=LANES
    ),
}
CHOICES = ("auto", *BACKENDS)  # of `attention` and of the Configs' field of that name
AUTO_LENGTH = 128  # tokens from which `auto` takes blockwise on CPU, where it skips keys (docs/log.md)


def attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k w"],
    mask: AttentionMask,
    *,
    scale: float | Float[Array, ""],
    backend: str = "reference",
    dropout_rate: float = 0.0,
    keys: Key[Array, "b"] | None = None,
    logit_softcap: float | None = None,
    sinks: Float[Array, " n"] | None = None,
    place: Place = unsharded,
) -> Float[Array, "b t n w"]:
    """Softmax attention by a backend, one of CHOICES: q [B T N H], k [B S K H], v [B S K W] -> [B T N W].

    `dropout_rate` applies to the attention weights, with one PRNG key per row in `keys`. `logit_softcap` bounds the
    scores. `sinks` are one logit per head that takes part in the softmax and has no value.

    `auto` is `blockwise` on CPU if it skips keys and T is at least AUTO_LENGTH, and `reference` everywhere else.

    Raises UsageError that names what the backend lacks and which backends have it. There is no fallback.
    """
    needs = {
        "positions": not mask.contiguous,
        "segments": mask.segments is not None,
        "window": mask.window is not None and mask.causal,
        "both ways": not mask.causal,
        "window both ways": mask.window is not None and not mask.causal,
        "groups": k.shape[2] != q.shape[2],
        "values": v.shape[3] != k.shape[3],
        "dropout": keys is not None and dropout_rate > 0,
        "soft cap": logit_softcap is not None,
        "sinks": sinks is not None,
        "float32": q.dtype.itemsize > 2,
        "bfloat16": q.dtype.itemsize == 2,
        "cp": (place("seq") or (None,))[0] is not None,
    }
    needed = {name for name, on in needs.items() if on}
    backend = choose_backend(needed, q.shape[1], k.shape[1]) if backend == "auto" else backend
    missing = {name: _missing(b, needed, (q.shape[1], k.shape[1]), q.shape[3]) for name, b in BACKENDS.items()}
    if missing[backend]:
        able = ", ".join(name for name, lacks in missing.items() if not lacks) or "none"
        raise UsageError(
            f"attention = {backend!r} does not support {'; '.join(missing[backend])}. Backends that do: {able}"
        )

    more: dict[str, Any] = {"logit_softcap": logit_softcap} if needs["soft cap"] else {}
    more |= {"sinks": sinks} if needs["sinks"] else {}
    more |= {"dropout_rate": dropout_rate, "keys": keys} if needs["dropout"] else {}
    out = BACKENDS[backend].run(q, k, v, mask, place, scale=scale, **more)
    for name, x in {"queries": q, "keys": k, "values": v, "attention_output": out}.items():
        sow(name, x)
    return out


def choose_backend(needed: set[str], T: int, S: int) -> str:
    """The backend that `auto` takes for a call with these needs, keys of FEATURES, on T queries and S keys."""
    skips = T == S >= AUTO_LENGTH and needed.isdisjoint({"both ways", "positions", "cp"})
    able = needed <= BACKENDS["blockwise"].supports
    return "blockwise" if compile_platform() == "cpu" and skips and able else "reference"


def _missing(backend: Backend, needed: set[str], lengths: tuple[int, int], width: int) -> list[str]:
    """What a backend lacks of the needed features, lengths, width and platform, in words."""
    words = [text for name, text in FEATURES.items() if name in needed - backend.supports]
    words += [f"{n} tokens, not a multiple of {backend.length}" for n in sorted(set(lengths)) if n % backend.length]
    words += [f"heads of width {width}, not a multiple of {backend.width}"] if width % backend.width else []
    return words + ([] if compile_platform() in backend.platforms else [f"the platform {compile_platform()}"])
