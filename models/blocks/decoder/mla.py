"""Multi-head latent attention (MLA): the keys and values of all heads come from one small latent, which is cached.

Legend: B batch, T query time, D width, L layers of a stack, N heads, H head width of queries and keys (nope + rope),
W value width, R rank of a latent.
Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.blocks.attention.rope import Rope, frequencies
from models.blocks.decoder.config import Decoder, residual_init, rms_norm_specs, with_bias
from models.blocks.decoder.forward import LayerContext, dot_product_attention
from models.blocks.decoder.kv_cache import CacheEntry
from models.core.checks import not_negative, positive, refuse
from models.core.layers import einsum, linear, reshard, rms_norm
from models.core.spec import Spec, normal
from models.core.types import Cache, Params, Specs

EPS = 1e-6  # of the norms of latents, whatever the decoder's eps


@dataclass(frozen=True)
class MLADecoder(Decoder):
    """A decoder with multi-head latent attention."""

    q_rank: int | None = None  # rank of the latent of queries; None projects queries from x directly
    kv_rank: int = 512  # rank of the latent of keys and values
    nope_dim: int = 128  # dims of each head of queries and keys without positions
    rope_dim: int = 64  # dims with rotary positions; the rotary key is shared by all heads
    value_dim: int = 128  # dims of each head's values
    rope_interleaved: bool = True  # rotary pairs are dims (2i, 2i + 1); False: (i, i + half)
    mscale: float = 0.0  # with scaled rope, scores grow by (0.1 mscale ln rope_factor + 1)^2
    attention_bias: bool = False  # on the projections to latents and rotary keys, and on out

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "q_rank", "kv_rank", "nope_dim", "value_dim")
        if self.rope_dim <= 0 or self.rope_dim % 2:
            refuse(self, "rope_dim", "positive and even (rotary dims are pairs)")
        not_negative(self, "mscale")

    @property
    def head_width(self) -> int:
        """H."""
        return self.nope_dim + self.rope_dim

    @property
    def ropes(self) -> dict[str, Rope]:
        """Rotary positions by kind of layer."""
        inv_freq = frequencies(self.rope_dim, self.rope_base, self.rope_scaling)
        return {"full": Rope(inv_freq, self.rope_scale, self.rope_interleaved)}

    @property
    def attention_scale(self) -> float:
        """Factor of queries times keys."""
        log_factor = math.log(max(self.rope_factor, 1.0)) if self.rope != "none" else 0.0
        return self.head_width**-0.5 * (0.1 * self.mscale * log_factor + 1) ** 2

    @property
    def cache_entry(self) -> CacheEntry:
        """What a layer caches per token: the latent and the rotary key."""
        return {"latent": ("rank", (self.kv_rank,)), "k": ("head_dim", (self.rope_dim,))}


def mla_specs(c: MLADecoder, L: int) -> Specs:
    """Specs: q [D N H], or q_down [D R] and q [R N H]; kv_down [D R], k_rope [D h], k v [R N h], out [N W D]."""
    D, N, H, W, R = c.width, c.heads, c.head_width, c.value_dim, c.kv_rank
    heads = "heads head_dim"

    def down(width: int, axis: str) -> dict[str, Spec]:
        return with_bias(Spec((L, D, width), f"layers embed {axis}", normal(0.02), fan_in="embed"), c.attention_bias)

    queries: Specs = {
        "q": {"kernel": Spec((L, D, N, H), f"layers embed {heads}", normal(0.02), fan_in="embed")},
    }
    if c.q_rank:
        queries = {
            "q_down": down(c.q_rank, "rank"),
            **rms_norm_specs(L, c.q_rank, "q_norm"),
            "q": {"kernel": Spec((L, c.q_rank, N, H), f"layers rank {heads}", normal(0.02), fan_in="rank")},
        }
    out = Spec((L, N, W, D), f"layers {heads} embed", residual_init(c), fan_in=heads)
    return {
        **queries,
        "kv_down": down(R, "rank"),
        **rms_norm_specs(L, R, "kv_norm"),
        "k_rope": down(c.rope_dim, "head_dim"),
        "k": {"kernel": Spec((L, R, N, c.nope_dim), f"layers rank {heads}", normal(0.02), fan_in="rank")},
        "v": {"kernel": Spec((L, R, N, W), f"layers rank {heads}", normal(0.02), fan_in="rank")},
        "out": with_bias(out, c.attention_bias),
    }


def latent_attention(
    x: Float[Array, "b t d"], p: Params, c: MLADecoder, context: LayerContext
) -> tuple[Float[Array, "b t d"], Cache | None]:
    """Multi-head latent attention: x [B T D] -> [B T D], and the layer's new cache.

    Without a cache, keys and values are projected from the latents. With a cache, the projections are absorbed:
    queries are projected to the latent space, attention runs over latents, and its output is projected to values.
    Source: eq. 37 to 47, and section 2.1.2.
    """
    place = context.place
    heads, ranks = place("batch seq heads head_dim"), place("batch seq rank")

    q_latent = x
    if c.q_rank:
        q_latent = rms_norm(linear("btd,dr->btr", x, p["q_down"], ranks), p["q_norm"]["scale"], EPS)
    q = einsum("btr,rnh->btnh", q_latent, p["q"]["kernel"], heads)
    q, q_rope = q[..., : c.nope_dim], context.rotate(q[..., c.nope_dim :])
    latent = rms_norm(linear("btd,dr->btr", x, p["kv_down"], ranks), p["kv_norm"]["scale"], EPS)
    k_rope = context.rotate(linear("btd,dh->bth", x, p["k_rope"], place("batch seq head_dim"))[:, :, None])

    if context.cache is None:
        k, v = (einsum("btr,rnh->btnh", latent, p[name]["kernel"], heads) for name in ("k", "v"))
        k_rope = reshard(jnp.broadcast_to(k_rope, (*k.shape[:3], c.rope_dim)), heads)
        k = jnp.concatenate([k, k_rope], -1)
        cache = None
        a = dot_product_attention(jnp.concatenate([q, q_rope], -1), k, v, c, context)
    else:
        kind = context.layer.kind
        entries = {"latent": latent, "k": k_rope[:, :, 0]}
        seen, cache = context.view.append_kv(kind, context.cache, **entries)
        q = einsum("btnh,rnh->btnr", q, p["k"]["kernel"], heads)
        k, v = jnp.concatenate([seen["latent"], seen["k"]], -1)[:, :, None], seen["latent"][:, :, None]
        a = dot_product_attention(jnp.concatenate([q, q_rope], -1), k, v, c, context)
        a = einsum("btnr,rnh->btnh", a, p["v"]["kernel"], heads)
    return linear("btnh,nhd->btd", a, p["out"], place("batch seq width")), cache
