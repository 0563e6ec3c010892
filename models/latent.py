"""Multi-head latent attention: keys and values of all heads from one small latent, which is all that a cache keeps.

Legend: B batch, T query time, D width, L layers of a stack, N heads, H head width of queries and keys (nope + rope),
W that of values, R rank of a latent.
Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from models.attention import attention
from models.decoder import Decoder, residual_init, rms_norm_specs, with_bias
from models.layers import einsum, linear, reshard, rms_norm
from models.rope import apply_rope, frequencies
from models.spec import Place, Spec, normal
from models.timeline import CacheEntry, CacheView
from models.validate import require

EPS = 1e-6  # of the norms of latents, whatever the decoder's is


@dataclass(frozen=True)
class MLADecoder(Decoder):
    """With latent attention."""

    q_rank: int | None = None  # of the latent of queries; None makes them of the stream itself
    kv_rank: int = 512  # of the latent of keys and values
    nope_dim: int = 128  # of a head: dims of queries and keys without positions
    rope_dim: int = 64  # and with; keys' are one for all heads
    value_dim: int = 128  # of a head's values
    rope_interleaved: bool = True  # rotary pairs are dims side by side; False half a head apart
    mscale: float = 0.0  # by (0.1 mscale ln rope_factor + 1) squared scores grow, where rope is stretched
    attention_bias: bool = False  # on what makes the latents and the rotary keys, and on out

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "positive", "q_rank", "kv_rank", "nope_dim", "value_dim")
        require(self, "positive and even (rotary dims are pairs)", "rope_dim", test=lambda n: n > 0 and n % 2 == 0)
        require(self, "not negative", "mscale")

    @property
    def head_width(self) -> int:
        """H."""
        return self.nope_dim + self.rope_dim

    @property
    def score_scale(self) -> float:
        """Of queries times keys."""
        grown = math.log(max(self.rope_factor, 1.0)) if self.rope != "none" else 0.0
        return self.head_width**-0.5 * (0.1 * self.mscale * grown + 1) ** 2

    @property
    def cache_entry(self) -> CacheEntry:
        """What a layer keeps of a token: the latent, and the rotary key."""
        return {"latent": ("rank", (self.kv_rank,)), "k": ("head_dim", (self.rope_dim,))}


def mla_specs(c: MLADecoder, L: int) -> dict[str, Any]:
    """The table: q [D N H], or q_down [D R] and q [R N H]; kv_down [D R], k_rope [D h], k v [R N h], out [N W D]."""
    D, N, H, W, R = c.width, c.heads, c.head_width, c.value_dim, c.kv_rank
    heads = "heads head_dim"

    def down(width: int, axis: str) -> dict[str, Spec]:
        return with_bias(Spec((L, D, width), f"layers embed {axis}", normal(0.02), fan_in="embed"), c.attention_bias)

    queries: dict[str, Any] = {
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
    x: Float[Array, "b t d"], p: Any, c: MLADecoder, time: CacheView, kind: str, held: Any, keys: Any, place: Place
) -> tuple[Float[Array, "b t d"], Any]:
    """Multi-head latent attention: x [B T D] -> [B T D], and what the layer then holds.

    Without a cache keys and values are made of the latents. With one, the queries are brought to the latents instead,
    and of the sum of those a value is made once a query: what makes keys and values is absorbed.
    Source: eq. 37 to 47, and section 2.1.2.
    """
    heads, ranks, mask = place("batch seq heads head_dim"), place("batch seq rank"), time.masks[kind]
    inv_freq = frequencies(c.rope_dim, c.rope_base, c.rope_scaling)
    turn = partial(
        apply_rope, position=time.position, inv_freq=inv_freq, scale=c.rope_scale, interleaved=c.rope_interleaved
    )
    backend = c.attention if time.cache is None else "reference"
    attend = partial(attention, scale=c.score_scale, backend=backend, dropout_rate=c.dropout, keys=keys, place=place)

    low = x
    if c.q_rank:
        low = rms_norm(linear("btd,dr->btr", x, p["q_down"], ranks), p["q_norm"]["scale"], EPS)
    q = einsum("btr,rnh->btnh", low, p["q"]["kernel"], heads)
    q, q_rope = q[..., : c.nope_dim], turn(q[..., c.nope_dim :])
    latent = rms_norm(linear("btd,dr->btr", x, p["kv_down"], ranks), p["kv_norm"]["scale"], EPS)
    k_rope = turn(linear("btd,dh->bth", x, p["k_rope"], place("batch seq head_dim"))[:, :, None])

    if held is None:
        k, v = (einsum("btr,rnh->btnh", latent, p[name]["kernel"], heads) for name in ("k", "v"))
        k_rope = reshard(jnp.broadcast_to(k_rope, (*k.shape[:3], c.rope_dim)), heads)
        a = attend(jnp.concatenate([q, q_rope], -1), jnp.concatenate([k, k_rope], -1), v, mask)
    else:
        latent, k_rope, held = time.append_kv(kind, held, latent=latent, k=k_rope[:, :, 0])
        q = einsum("btnh,rnh->btnr", q, p["k"]["kernel"], heads)
        k, v = jnp.concatenate([latent, k_rope], -1)[:, :, None], latent[:, :, None]
        a = attend(jnp.concatenate([q, q_rope], -1), k, v, mask)
        a = einsum("btnr,rnh->btnh", a, p["v"]["kernel"], heads)
    return linear("btnh,nhd->btd", a, p["out"], place("batch seq width")), held
