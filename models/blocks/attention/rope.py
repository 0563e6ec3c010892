"""Rotary position embedding, and the scaling of its frequencies for contexts longer than that of pretraining.

Legend: B batch, T time, N heads, H head width.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies.

    Frequencies between `low` and `high` turns within `context` blend the scaled and the original ones.
    """

    kind: str = "none"  # one of ROPE_SCALINGS
    factor: float = 1.0  # context length over that of pretraining
    context: int = 8192  # of pretraining, tokens
    low: float = 1.0  # frequencies with fewer turns are divided by `factor`; yarn's beta_slow
    high: float = 4.0  # frequencies with more turns are kept; yarn's beta_fast
    truncate: bool = True  # yarn: round the ends of the ramp to whole dims
    scale: float = 1.0  # of rotated queries and keys; yarn's attention factor


class Rope(NamedTuple):
    """Rotary positions of a kind of layer: the arguments of `apply_rope` beside queries or keys and their positions."""

    inv_freq: Float[np.ndarray, " half"]  # radians a token of each pair of dims, [H/2]
    scale: float = 1.0  # of the rotated vectors
    interleaved: bool = False  # pairs are dims side by side


def frequencies(width: int, base: float, scaling: RopeScaling) -> Float[np.ndarray, " half"]:
    """Inverse frequencies: radians per token of each pair of dims, float32: H, base -> [H/2].

    Source: Su et al. 2021, arXiv:2104.09864, eq. 15; linear: Chen et al. 2023, arXiv:2306.15595, eq. 4; llama3:
    Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.3, as in Meta's released code; yarn: Peng et al. 2023,
    arXiv:2309.00071, definition 2 (NTK-by-parts).
    """
    plain = (1.0 / np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
    if scaling.kind == "none":
        return plain
    slow = plain / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return slow
    if scaling.kind == "llama3":
        turns = scaling.context * plain / (2 * np.pi)
        ramp = max(scaling.high - scaling.low, 1e-9)  # equal bounds: no blending
        keep = np.clip((turns - scaling.low) / ramp, 0, 1)
    else:

        def dim(turns: float) -> float:
            """The dim whose pair makes `turns` turns within the context."""
            return width * math.log(scaling.context / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = dim(scaling.high), dim(scaling.low)
        if scaling.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        keep = 1 - np.clip((np.arange(width // 2) - first) / (last - first or 0.001), 0, 1)
    return (slow * (1 - keep) + plain * keep).astype(np.float32)


def apply_rope(
    x: Float[Array, "b t n h"],
    position: Int[Array, "#b t"],
    inv_freq: Float[np.ndarray, " half"],
    scale: float = 1.0,
    interleaved: bool = False,
) -> Float[Array, "b t n h"]:
    """Rotate each pair of dims by position * inv_freq, in float32: x [B T N H], inv_freq [H/2] -> [B T N H].

    Pairs are dims (i, i + H/2), as in GPT-NeoX and in Llama's files on the Hugging Face hub, or, if `interleaved`,
    (2i, 2i + 1), as in the paper. The result is multiplied by `scale`.
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    angle = position[:, :, None, None].astype(jnp.float32) * jnp.asarray(inv_freq)[None, None, None]
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    y = x.astype(jnp.float32)
    one, two = (y[..., 0::2], y[..., 1::2]) if interleaved else jnp.split(y, 2, -1)
    both = one * cos - two * sin, two * cos + one * sin
    y = jnp.stack(both, -1).reshape(x.shape) if interleaved else jnp.concatenate(both, -1)
    return y.astype(x.dtype)
