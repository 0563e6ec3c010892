"""Specs of the two sublayers of a Transformer's layer, for a stack of layers: multi-head attention, and the MLP.

Legend: L layers of a stack, D width, N heads, H = D/N, F hidden.
"""

from models.blocks.decoder.config import with_bias
from models.core.spec import Initializer, Spec
from models.core.types import Specs


def attention_specs(L: int, D: int, N: int, init: Initializer, *, qkv_bias: bool = True, bias: bool = True) -> Specs:
    """Specs of multi-head attention: q k v [D N H], out [N H D]; `bias` is that of out."""
    H = D // N
    into = with_bias(Spec((L, D, N, H), "layers embed heads head_dim", init, fan_in="embed"), qkv_bias)
    out = Spec((L, N, H, D), "layers heads head_dim embed", init, fan_in="heads head_dim")
    return {**dict.fromkeys("qkv", into), "out": with_bias(out, bias)}


def mlp_specs(L: int, D: int, F: int, up: Initializer, down: Initializer, bias: bool = True) -> Specs:
    """Specs of an MLP: up [D F], down [F D]."""
    return {
        "up": with_bias(Spec((L, D, F), "layers embed mlp", up, fan_in="embed"), bias),
        "down": with_bias(Spec((L, F, D), "layers mlp embed", down, fan_in="mlp"), bias),
    }
