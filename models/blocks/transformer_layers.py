"""Transformer layers with multi-head attention and an MLP without gate: Config base class, parameter specs, the MLP.

Legend: B batch, T tokens, L layers of a stack, D width, N heads, H head width, F hidden.
"""

from dataclasses import dataclass

from jaxtyping import Array, Float, Key

from models.blocks.attention.attention import CHOICES
from models.blocks.decoder.config import with_bias
from models.core.checks import COMPUTE, REMAT, divides, one_of, positive, probability
from models.core.intermediates import sow
from models.core.layers import ACTIVATIONS, dropout, linear
from models.core.spec import Initializer, Spec
from models.core.types import OutSharding, Params, Specs


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape and options of the layers."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int | None = None  # of the MLP; None is 4 * width
    activation: str = "gelu"
    dropout: float = 0.0  # probability, on the embeddings and the output of each branch
    eps: float = 1e-5
    compute: str = "float32"  # dtype of activations
    attention: str = "auto"  # one of attention.CHOICES; with a cache always the reference
    remat: str = "none"  # rematerialisation: a key of REMAT
    scan: bool | None = None  # compile the layers as one loop; False unrolls it; None: `core/loop.py: unroll`

    def __post_init__(self) -> None:
        positive(self, "width", "depth", "heads", "hidden", "eps")
        probability(self, "dropout")
        one_of(self, activation=ACTIVATIONS, compute=COMPUTE, attention=CHOICES, remat=REMAT)
        divides(self, "heads", "width")

    @property
    def feed_forward(self) -> int:
        """F."""
        return self.hidden or 4 * self.width

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.heads


def attention_specs(
    c: TransformerConfig, L: int, init: Initializer, *, qkv_bias: bool = True, bias: bool = True
) -> Specs:
    """Specs of multi-head attention: q k v [L D N H], out [L N H D]; `bias` is that of out."""
    D, N, H = c.width, c.heads, c.head_width
    into = with_bias(Spec((L, D, N, H), "layers embed heads head_dim", init, fan_in="embed"), qkv_bias)
    out = Spec((L, N, H, D), "layers heads head_dim embed", init, fan_in="heads head_dim")
    return {**dict.fromkeys("qkv", into), "out": with_bias(out, bias)}


def mlp_specs(c: TransformerConfig, L: int, up: Initializer, down: Initializer, bias: bool = True) -> Specs:
    """Specs of an MLP: up [L D F], down [L F D]."""
    D, F = c.width, c.feed_forward
    return {
        "up": with_bias(Spec((L, D, F), "layers embed mlp", up, fan_in="embed"), bias),
        "down": with_bias(Spec((L, F, D), "layers mlp embed", down, fan_in="mlp"), bias),
    }


def mlp(
    x: Float[Array, "b t d"],
    p: Params,
    activation: str,
    hidden: OutSharding,
    out: OutSharding,
    keys: Key[Array, "b"] | None = None,
    dropout_rate: float = 0.0,
) -> Float[Array, "b t d"]:
    """activation(x up) down: x [B T D] -> [B T D]; `keys` and `dropout_rate` are of dropout on the activations."""
    h = ACTIVATIONS[activation](linear("btd,df->btf", x, p["up"], hidden))
    sow("mlp_hidden", h)
    h = dropout(h, keys, dropout_rate, "hidden", hidden)
    return linear("btf,fd->btd", h, p["down"], out)
