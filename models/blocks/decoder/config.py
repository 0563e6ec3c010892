"""Config base classes, parameter specs and layers that decoders with rotary positions share.

Legend: B batch, T query time, V padded vocabulary, D width, L layers of a stack, N query heads, K key-value heads,
H head width, F hidden.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from models.blocks.attention.attention import CHOICES
from models.blocks.attention.rope import ROPE_SCALINGS, Rope, RopeScaling, frequencies
from models.blocks.decoder import kv_cache
from models.blocks.decoder.kv_cache import AttentionSpan, CacheEntry, CacheView
from models.blocks.decoder.stack import Layer
from models.core.checks import COMPUTE, REMAT, at_least, divides, one_of, positive, probability, refuse
from models.core.intermediates import sow
from models.core.layers import ACTIVATIONS, linear, sequence_shape
from models.core.spec import Initializer, Place, Spec, normal, ones, round_up, unsharded, zeros
from models.core.types import Cache, Inputs, Params, Specs


@dataclass(frozen=True)
class Decoder:
    """Shape and options of a decoder with rotary positions."""

    vocab: int = 32000  # tokens
    vocab_multiple: int = 128  # the table is padded to a multiple of it
    context: int = 2048  # longest sequence, tokens
    width: int = 512
    depth: int = 8
    heads: int = 8
    hidden: int | None = None  # width of the MLP; None is 8/3 width, rounded up to a multiple of 256
    activation: str = "silu"  # of the MLP's gate
    rope: str = "none"  # scaling of rotary frequencies: none | linear | llama3 | yarn
    rope_base: float = 10000.0
    rope_factor: float = 1.0  # context length over that of pretraining
    rope_context: int | None = None  # of pretraining, tokens; None is context
    rope_low: float = 1.0  # llama3 and yarn (beta_slow): frequencies with fewer turns in rope_context are scaled
    rope_high: float = 4.0  # llama3 and yarn (beta_fast, 32 in its paper): frequencies with more turns are kept
    rope_truncate: bool = True  # yarn: round the ends of the ramp to whole dims
    rope_scale: float = 1.0  # yarn: factor of rotated queries and keys
    dropout: float = 0.0  # probability, on the attention weights
    tied: bool = False  # the output head is the token embedding
    eps: float = 1e-5
    compute: str = "float32"  # dtype of activations
    attention: str = "auto"  # one of attention.CHOICES; with a cache always the reference
    remat: str = "none"  # rematerialisation: a key of REMAT
    scan: bool | None = None  # compile repeating layers as one loop; False unrolls it; None: `core/loop.py: unroll`

    def __post_init__(self) -> None:
        positive(self, "vocab", "vocab_multiple", "context", "width", "depth", "heads", "hidden", "eps")
        positive(self, "rope_base", "rope_factor", "rope_context", "rope_scale", "rope_low", "rope_high")
        probability(self, "dropout")
        one_of(self, activation=ACTIVATIONS, rope=ROPE_SCALINGS, compute=COMPUTE, attention=CHOICES, remat=REMAT)
        if self.rope != "yarn" and self.rope_scale != 1:
            refuse(self, "rope_scale", f"1 for rope={self.rope!r}")

    @property
    def feed_forward(self) -> int:
        """F."""
        return self.hidden or -(-8 * self.width // (3 * 256)) * 256

    @property
    def rope_scaling(self) -> RopeScaling:
        """The scaling of rotary frequencies."""
        context = self.rope_context or self.context
        ramp = self.rope_low, self.rope_high, self.rope_truncate
        return RopeScaling(self.rope, self.rope_factor, context, *ramp, self.rope_scale)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kind and stack of each layer."""
        return (Layer("full"),) * self.depth

    @property
    def spans(self) -> dict[str, AttentionSpan]:
        """The attention span of each kind of layer."""
        return {"full": AttentionSpan()}

    @property
    def head_width(self) -> int:
        """H, of queries and keys."""
        raise NotImplementedError

    @property
    def ropes(self) -> dict[str, Rope]:
        """Rotary positions by kind of layer; a kind without positions is left out."""
        inv_freq = frequencies(self.head_width, self.rope_base, self.rope_scaling)
        return dict.fromkeys(self.spans, Rope(inv_freq, self.rope_scale))

    @property
    def embed_scale(self) -> float:
        """Factor of the token vectors."""
        return 1.0

    @property
    def attention_scale(self) -> float:
        """Factor of queries times keys."""
        return self.head_width**-0.5

    @property
    def attn_logit_softcap(self) -> float | None:
        """Bound of queries times keys, by tanh."""
        return None

    @property
    def logit_scale(self) -> float:
        """Factor of the logits."""
        return 1.0

    @property
    def final_logit_softcap(self) -> float | None:
        """Bound of the logits, by tanh."""
        return None

    @property
    def cache_entry(self) -> CacheEntry:
        """What a layer caches per token."""
        raise NotImplementedError

    @property
    def cache_entries(self) -> dict[str, CacheEntry]:
        """What a layer of each kind caches per token."""
        return dict.fromkeys(self.spans, self.cache_entry)


@dataclass(frozen=True)
class GQADecoder(Decoder):
    """A decoder with grouped-query attention: Ainslie et al. 2023, arXiv:2305.13245."""

    kv_heads: int | None = None  # None is heads
    head_dim: int | None = None  # None is width / heads

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "kv_heads", "head_dim")
        divides(self, "kv_heads", "heads")
        if self.head_dim is not None and self.head_dim % 2:
            refuse(self, "head_dim", "even (rotary dims are pairs)")
        if self.head_dim is None and self.width % (2 * self.heads):
            refuse(self, "heads", f"a divisor of half of width={self.width}")

    @property
    def head_width(self) -> int:
        """H."""
        return self.head_dim or self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.kv_heads or self.heads

    @property
    def cache_entry(self) -> CacheEntry:
        """What a layer caches per token."""
        return dict.fromkeys(("k", "v"), ("kv_heads head_dim", (self.num_kv_heads, self.head_width)))


@dataclass(frozen=True)
class SlidingWindowDecoder(GQADecoder):
    """A decoder with sliding-window layers: Beltagy et al. 2020, arXiv:2004.05150, section 3.1."""

    window: int | None = None  # tokens that a sliding layer attends to, the query included; None is all
    sliding_layers: tuple[int, ...] | None = None  # if there is a window; None is the family's default

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "window")
        if any(not 0 <= i < self.depth for i in self.sliding_layers or ()):
            refuse(self, "sliding_layers", "layers of the depth")

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The kind of each layer: `full` or `sliding`."""
        sliding = self.default_sliding_layers if self.sliding_layers is None else self.sliding_layers
        return tuple(Layer("sliding" if self.window and i in sliding else "full") for i in range(self.depth))

    @property
    def default_sliding_layers(self) -> Sequence[int]:
        """The sliding layers if `sliding_layers` is None."""
        return range(self.depth)

    @property
    def spans(self) -> dict[str, AttentionSpan]:
        """The attention span of each kind of layer."""
        every = {"full": AttentionSpan(), "sliding": AttentionSpan(self.window)}
        return {kind: every[kind] for kind in dict.fromkeys(layer.kind for layer in self.layers)}


# Specs


def residual_init(c: Decoder) -> Initializer:
    """The initializer of projections into the residual stream: smaller by 1/sqrt(2L), as in GPT-2."""
    return normal(0.02 / (2 * c.depth) ** 0.5)


def embed_and_head_specs(c: Decoder, norm: Initializer = ones) -> Specs:
    """Specs of token embedding, final norm and, unless tied, output head."""
    V, D = round_up(c.vocab, c.vocab_multiple), c.width
    table = {"embed": {"token": Spec((V, D), "vocab embed", normal(0.02))}, "norm": {"scale": Spec((D,), "norm", norm)}}
    return table if c.tied else {**table, "head": Spec((V, D), "vocab embed", normal(0.02), fan_in="embed")}


def decoder_specs(block_specs: Callable[[Any, str, int], Specs], c: Decoder, norm: Initializer = ones) -> Specs:
    """Specs of a decoder; `block_specs(c, stack, L)` returns those of a stack of L layers."""
    counts = Counter(layer.stack for layer in c.layers)
    blocks = {stack: block_specs(c, stack, L) for stack, L in counts.items()}
    return {"params": {**embed_and_head_specs(c, norm), "blocks": blocks.get("blocks", blocks)}}


def rms_norm_specs(L: int, width: int, *names: str, init: Initializer = ones) -> Specs:
    """Specs of RMSNorms of a stack."""
    return {name: {"scale": Spec((L, width), "layers norm", init)} for name in names}


def with_bias(kernel: Spec, bias: bool) -> dict[str, Spec]:
    """Specs of a kernel and, if `bias`, of a bias over the dims that the product does not contract."""
    if not bias:
        return {"kernel": kernel}
    inside = kernel.fan_in.split()
    rest = [(name, n) for name, n in zip(kernel.names, kernel.shape, strict=True) if name not in inside]
    names = " ".join("norm" if name == "embed" else name for name, _ in rest)
    return {"kernel": kernel, "bias": Spec(tuple(n for _, n in rest), names, zeros)}


def gqa_specs(c: GQADecoder, L: int, bias: bool = False) -> Specs:
    """Specs of grouped-query attention: q [D N H], k v [D K H], out [N H D]."""
    D, N, K, H = c.width, c.heads, c.num_kv_heads, c.head_width
    shapes = {"q": (N, "heads"), "k": (K, "kv_heads"), "v": (K, "kv_heads")}
    kernels = {
        name: Spec((L, D, n, H), f"layers embed {axis} head_dim", normal(0.02), fan_in="embed")
        for name, (n, axis) in shapes.items()
    }
    kernels["out"] = Spec((L, N, H, D), "layers heads head_dim embed", residual_init(c), fan_in="heads head_dim")
    return {name: with_bias(kernel, bias) for name, kernel in kernels.items()}


def gated_mlp_specs(c: Decoder, L: int, F: int, bias: bool = False) -> Specs:
    """Specs of a gated MLP: gate up [D F], down [F D]."""
    up = Spec((L, c.width, F), "layers embed mlp", normal(0.02), fan_in="embed")
    down = Spec((L, F, c.width), "layers mlp embed", residual_init(c), fan_in="mlp")
    return {"gate": with_bias(up, bias), "up": with_bias(up, bias), "down": with_bias(down, bias)}


# The block


def qkv_projection(
    x: Float[Array, "b t d"], p: Params, place: Place = unsharded
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t k h"], Float[Array, "b t k h"]]:
    """Queries, keys and values: x [B T D] -> [B T N H], [B T K H], [B T K H]."""
    q = linear("btd,dnh->btnh", x, p["q"], place("batch seq heads head_dim"))
    k, v = (linear("btd,dkh->btkh", x, p[name], place("batch seq kv_heads head_dim")) for name in ("k", "v"))
    return q, k, v


def gated_mlp(x: Float[Array, "b t d"], p: Params, activation: str, place: Place = unsharded) -> Float[Array, "b t d"]:
    """(activation(x gate) * x up) down: x [B T D] -> [B T D]. Source: Shazeer 2020, arXiv:2002.05202, eq. 6."""
    hidden = place("batch seq mlp")
    gate, up = (linear("btd,df->btf", x, p[name], hidden) for name in ("gate", "up"))
    h = ACTIVATIONS[activation](gate) * up
    sow("mlp_hidden", h)
    return linear("btf,fd->btd", h, p["down"], place("batch seq width"))


def cache_specs(c: Decoder, batch: int, length: int) -> Specs:
    """Specs of a cache for `length` tokens; layers with a window or chunks cache only that many."""
    at_least(c, "context", length, f"the cache's length {length}")
    return kv_cache.cache_specs(
        c.spans, Counter(layer.kind for layer in c.layers), c.cache_entries, batch, length, c.compute
    )


def open_cache(c: Decoder, inputs: Inputs, cache: Cache | None, place: Place) -> CacheView:
    """A view of the cache for the input's tokens. Raises UsageError if they are more than the context."""
    _, T = sequence_shape(inputs)
    at_least(c, "context", T, f"the {T} tokens of the input")
    return kv_cache.open_cache(inputs, c.spans, cache, place)
