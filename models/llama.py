"""Llama: a decoder of pre-norm blocks with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Legend: B batch, T query time, S key time, V padded vocabulary, D width, L depth, N query heads, K key-value heads,
H head width, F hidden.
Source: Touvron et al. 2023, arXiv:2302.13971 (1) and arXiv:2307.09288 (2); Grattafiori et al. 2024, arXiv:2407.21783
(3); Jiang et al. 2023, arXiv:2310.06825 (Mistral: a sliding window); Yang et al. 2025, arXiv:2505.09388 (Qwen 3: norms
on queries and keys). Initial values are GPT-2's: the papers give none.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from models.attention import BACKENDS, attention, cache_specs, remember
from models.layers import ACTIVATIONS, add, fold_keys, lookup, product, resharded, rms_norm
from models.rope import KINDS, Stretch, frequencies, rotate
from models.sight import Sight, in_order
from models.spec import Array, Outputs, Place, Spec, Unembedding, nowhere, ones, std, zeros
from models.stack import scan_layers
from models.validate import COMPUTE, REMAT, check, one_of

TRAITS = frozenset({"causal", "cached", "language_model"})
INPUT = "tokens"
ZERO_GRAD: dict[str, str] = {}


def _llama1(width: int, depth: int, hidden: int) -> dict[str, Any]:
    return dict(vocab=32000, context=2048, width=width, depth=depth, heads=width // 128, hidden=hidden, eps=1e-6)


def _llama2(width: int, depth: int, hidden: int, kv_heads: int | None = None) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=width // 128, kv_heads=kv_heads, hidden=hidden)
    return dict(vocab=32000, context=4096, **shape)


def _llama3(
    width: int, depth: int, heads: int, hidden: int, factor: float | None = None, **more: Any
) -> dict[str, Any]:
    shape = dict(vocab=128256, width=width, depth=depth, heads=heads, kv_heads=8, hidden=hidden, rope_base=5e5)
    if factor is None:
        return dict(context=8192, **shape, **more)
    return dict(context=131072, rope="llama3", rope_factor=factor, rope_context=8192, **shape, **more)


def _qwen3(width: int, depth: int, heads: int, hidden: int, tied: bool = False) -> dict[str, Any]:
    shape = dict(width=width, depth=depth, heads=heads, kv_heads=8, head_dim=128, hidden=hidden, tied=tied)
    return dict(vocab=151936, context=40960, rope_base=1e6, eps=1e-6, qk_norm=True, **shape)


SIZES: dict[str, dict[str, Any]] = {
    "llama_7b": _llama1(4096, 32, 11008),
    "llama_13b": _llama1(5120, 40, 13824),
    "llama_33b": _llama1(6656, 60, 17920),
    "llama_65b": _llama1(8192, 80, 22016),
    "llama2_7b": _llama2(4096, 32, 11008),
    "llama2_13b": _llama2(5120, 40, 13824),
    "llama2_70b": _llama2(8192, 80, 28672, kv_heads=8),
    "llama3_8b": _llama3(4096, 32, 32, 14336),
    "llama3_70b": _llama3(8192, 80, 64, 28672),
    "llama3.1_8b": _llama3(4096, 32, 32, 14336, factor=8.0),
    "llama3.1_70b": _llama3(8192, 80, 64, 28672, factor=8.0),
    "llama3.1_405b": _llama3(16384, 126, 128, 53248, factor=8.0),
    "llama3.2_1b": _llama3(2048, 16, 32, 8192, factor=32.0, tied=True),
    "llama3.2_3b": _llama3(3072, 28, 24, 8192, factor=32.0, tied=True),
    "mistral_7b": dict(
        vocab=32000, context=32768, width=4096, depth=32, heads=32, kv_heads=8, hidden=14336, window=4096
    ),
    "qwen3_0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3_1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3_4b": _qwen3(2560, 36, 32, 9728, tied=True),
    "qwen3_8b": _qwen3(4096, 36, 32, 12288),
    "qwen3_14b": _qwen3(5120, 40, 40, 17408),
    "qwen3_32b": _qwen3(5120, 64, 64, 25600),
}


@dataclass(frozen=True)
class Config:
    """Shape and options of a Llama."""

    vocab: int = 32000  # tokens
    vocab_multiple: int = 128  # the table is padded to a multiple of it
    context: int = 2048  # longest sequence, tokens
    width: int = 512
    depth: int = 8
    heads: int = 8
    kv_heads: int | None = None  # None is heads
    head_dim: int | None = None  # None is width / heads
    hidden: int | None = None  # of the MLP; None is 8/3 width, rounded up to a multiple of 256
    activation: str = "silu"  # of the MLP's gate
    attention_bias: bool = False  # on q, k, v and out
    mlp_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each head's queries and keys
    window: int | None = None  # tokens that a sliding layer sees, itself among them
    sliding: tuple[int, ...] | None = None  # the layers that slide, where there is a window; None is all
    rope: str = "none"  # how rotary frequencies are stretched: none | linear | llama3 | yarn
    rope_base: float = 10000.0
    rope_factor: float = 1.0  # by how much the context has grown
    rope_context: int | None = None  # of pretraining, tokens; None is context
    rope_low: float = 1.0  # of llama3 and yarn (beta_slow): fewer turns than this within rope_context are slowed
    rope_high: float = 4.0  # of llama3 and yarn (beta_fast, whose paper takes 32): more turns than this stay
    rope_whole: bool = True  # yarn's ramp begins and ends at whole dims
    rope_scale: float = 1.0  # of yarn: of rotated queries and of keys
    dropout: float = 0.0  # probability, of the attention weights
    tied: bool = False  # the head is the token table
    eps: float = 1e-5
    compute: str = "float32"  # dtype of activations
    attention: str = "reference"  # how it is computed: a key of attention.BACKENDS; with a cache by the reference
    remat: str = "none"  # what the backward pass recomputes
    scan: bool = True  # one compiled block, looped; False unrolls

    def __post_init__(self) -> None:
        check(self, "positive", "vocab", "vocab_multiple", "context", "width", "depth", "heads", "kv_heads", "head_dim")
        check(self, "positive", "hidden", "window", "eps", "rope_base", "rope_factor", "rope_context", "rope_scale")
        check(self, "positive", "rope_low", "rope_high")
        check(self, "probability", "dropout")
        one_of(self, activation=ACTIVATIONS, rope=KINDS, compute=COMPUTE, attention=BACKENDS, remat=REMAT)
        check(self, f"a divisor of heads={self.heads}", "kv_heads", ok=lambda n: self.heads % n == 0)
        check(self, "even (rotary dims are pairs)", "head_dim", ok=lambda n: n % 2 == 0)
        if self.head_dim is None:
            check(self, f"a divisor of half of width={self.width}", "heads", ok=lambda n: self.width % (2 * n) == 0)
        if self.rope != "yarn":
            check(self, f"1 for rope={self.rope!r}", "rope_scale", ok=lambda scale: scale == 1)
        check(self, "layers of the depth", "sliding", ok=lambda n: 0 <= n < self.depth)

    @property
    def head_width(self) -> int:
        """H."""
        return self.head_dim or self.width // self.heads

    @property
    def groups(self) -> int:
        """K."""
        return self.kv_heads or self.heads

    @property
    def feed_forward(self) -> int:
        """F."""
        return self.hidden or -(-8 * self.width // (3 * 256)) * 256

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each layer sees: all that is before it, or a sliding window."""
        slides = range(self.depth) if self.sliding is None else self.sliding
        return tuple("sliding" if self.window and i in slides else "full" for i in range(self.depth))

    @property
    def stretch(self) -> Stretch:
        """How rotary frequencies are stretched."""
        trained = self.rope_context or self.context
        ramp = self.rope_low, self.rope_high, self.rope_whole
        return Stretch(self.rope, self.rope_factor, trained, *ramp, self.rope_scale)


def specs(c: Config) -> dict[str, Any]:
    """The table of parameters."""
    L, D, N, K, H, F = c.depth, c.width, c.heads, c.groups, c.head_width, c.feed_forward
    V = -(-c.vocab // c.vocab_multiple) * c.vocab_multiple
    residual = std(0.02 / (2 * L) ** 0.5)

    def heads(count: int, axis: str) -> dict[str, Spec]:
        table = {"kernel": Spec((L, D, count, H), f"layers embed {axis} head_dim", std(0.02), fan_in="embed")}
        return {**table, "bias": Spec((L, count, H), f"layers {axis} head_dim", zeros)} if c.attention_bias else table

    def biased(kernel: Spec, size: int, axis: str, on: bool) -> dict[str, Spec]:
        return {"kernel": kernel, "bias": Spec((L, size), f"layers {axis}", zeros)} if on else {"kernel": kernel}

    up = Spec((L, D, F), "layers embed mlp", std(0.02), fan_in="embed")
    out = Spec((L, N, H, D), "layers heads head_dim embed", residual, fan_in="heads head_dim")
    blocks: dict[str, Any] = {
        "norm1": {"scale": Spec((L, D), "layers norm", ones)},
        "q": heads(N, "heads"),
        "k": heads(K, "kv_heads"),
        "v": heads(K, "kv_heads"),
        "out": biased(out, D, "norm", c.attention_bias),
        "norm2": {"scale": Spec((L, D), "layers norm", ones)},
        "gate": biased(up, F, "mlp", c.mlp_bias),
        "up": biased(up, F, "mlp", c.mlp_bias),
        "down": biased(Spec((L, F, D), "layers mlp embed", residual, fan_in="mlp"), D, "norm", c.mlp_bias),
    }
    if c.qk_norm:
        blocks |= {name: {"scale": Spec((L, H), "layers norm", ones)} for name in ("q_norm", "k_norm")}
    params: dict[str, Any] = {
        "embed": {"token": Spec((V, D), "vocab embed", std(0.02))},
        "blocks": blocks,
        "norm": {"scale": Spec((D,), "norm", ones)},
    }
    if not c.tied:
        params["head"] = Spec((V, D), "vocab embed", std(0.02), fan_in="embed")
    return {"params": params}


def cache(c: Config, batch: int, length: int) -> dict[str, Any]:
    """The table of a cache for `length` tokens, kind by kind of layer; sliding layers keep their window only."""
    check(c, f"at least the cache's length {length}", "context", ok=lambda n: n >= length)
    lengths = {"full": length, "sliding": min(length, c.window or length)}
    counts = {kind: c.kinds.count(kind) for kind in lengths}
    table: dict[str, Any] = {
        kind: cache_specs(count, batch, lengths[kind], c.groups, c.head_width, c.compute)
        for kind, count in counts.items()
        if count
    }
    return {**table, "filled": Spec((), "", zeros, dtype="int32")}


def apply(
    variables: Any,
    inputs: dict[str, Array],
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: dict[str, Any] | None = None,
    place: Place = nowhere,
) -> Outputs:
    """Next-token logits, float32, masked beyond the vocabulary: tokens [B T] -> [B T V].

    `key` is one PRNG key a row, [B]; None draws nothing. Optional inputs: position [B T], below 0 where a token is
    padding; segment [B T] (a token sees its own segment only; not with a cache). With a cache the tokens follow those
    that it holds.
    """
    p, tokens, keys = variables["params"], inputs["tokens"], key if train else None
    T, start = tokens.shape[1], jnp.zeros((), jnp.int32) if cache is None else cache["filled"]
    check(c, f"at least the {T} tokens of the input", "context", ok=lambda n: n >= T)
    position = resharded(inputs.get("position", start + jnp.arange(T)[None]), place("one query"))
    now = in_order(position, start)
    turns, stream = frequencies(c.head_width, c.rope_base, c.stretch), place("batch seq width")
    segment = inputs.get("segment")
    segment = None if segment is None else resharded(segment, place("batch query"))
    sights, positions = {}, {}
    for kind in set(c.kinds):
        then = now
        if cache is not None:
            whole = jnp.broadcast_to(now, (tokens.shape[0], T))
            then, positions[kind] = remember(cache[kind]["position"], whole, None if kind == "sliding" else start)
        window = c.window if kind == "sliding" else None
        plain = cache is None and "position" not in inputs
        sights[kind] = Sight(now, then, None if segment is None else (segment, segment), window, plain=plain)

    backend = c.attention if cache is None else "reference"

    def norm(x: Array, p: dict[str, Array]) -> Array:
        return rms_norm(x, p["scale"], c.eps)

    def affine(equation: str, x: Array, p: dict[str, Array], over: Any) -> Array:
        y = product(equation, x, p["kernel"], over)
        return add(y, p["bias"]) if "bias" in p else y

    def block(kind: str, x: Array, layer: tuple[Any, Array, Any]) -> tuple[Array, Any]:
        p, index, held = layer
        h = norm(x, p["norm1"])
        q = affine("btd,dnh->btnh", h, p["q"], place("batch seq heads head_dim"))
        k, v = (affine("btd,dkh->btkh", h, p[name], place("batch seq kv_heads head_dim")) for name in ("k", "v"))
        if c.qk_norm:
            q, k = norm(q, p["q_norm"]), norm(k, p["k_norm"])
        q, k = (rotate(x, position, turns, c.rope_scale) for x in (q, k))
        if held is not None:
            at = None if kind == "sliding" else start
            (k, kept_k), (v, kept_v) = remember(held["k"], k, at), remember(held["v"], v, at)
            held = {"k": kept_k, "v": kept_v}
        own, scale = fold_keys(keys, index), c.head_width**-0.5
        a = attention(q, k, v, sights[kind], scale=scale, backend=backend, rate=c.dropout, keys=own, place=place)
        x = x + affine("btnh,nhd->btd", a, p["out"], stream)
        h, hidden = norm(x, p["norm2"]), place("batch seq mlp")
        h = ACTIVATIONS[c.activation](affine("btd,df->btf", h, p["gate"], hidden)) * affine(
            "btd,df->btf", h, p["up"], hidden
        )
        return x + affine("btf,fd->btd", h, p["down"], stream), held

    x = lookup(p["embed"]["token"], tokens, stream).astype(COMPUTE[c.compute])
    held = None if cache is None else {kind: {n: cache[kind][n] for n in ("k", "v")} for kind in sights}
    how: dict[str, Any] = dict(remat=c.remat, scan=c.scan)
    x, held = scan_layers(lambda kind: partial(block, kind), c.kinds, x, p["blocks"], held, **how)
    x, table = norm(x, p["norm"]), p["embed"]["token"] if c.tied else p["head"]
    if cache is None or held is None:
        return Outputs(Unembedding(x, table, c.vocab))
    if "full" in cache:  # what a full cache could not take is wrong, and is not to pass for right
        x = jnp.where(start + T <= cache["full"]["k"].shape[2], x, jnp.nan)
    new = {kind: {**held[kind], "position": positions[kind]} for kind in held}
    return Outputs(Unembedding(x, table, c.vocab), cache={**new, "filled": start + T})
