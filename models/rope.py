"""Rotary position embedding, and how its frequencies are stretched for contexts longer than those of pretraining.

Legend: B batch, T time, N heads, H head width.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

KINDS = ("none", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Stretch:
    """How frequencies are stretched; `low` and `high` bound, in turns within `context`, what is blended."""

    kind: str = "none"
    factor: float = 1.0  # by how much the context has grown
    context: int = 8192  # of pretraining, tokens
    low: float = 1.0  # fewer turns than this are slowed by `factor`; yarn's beta_slow
    high: float = 4.0  # more turns than this stay; yarn's beta_fast
    whole: bool = True  # yarn: the ramp begins and ends at whole dims
    scale: float = 1.0  # of the rotated vectors; yarn's attention factor


def frequencies(width: int, base: float, stretch: Stretch) -> Float[np.ndarray, " half"]:
    """Radians a token of each pair of dims, float32: H, base -> [H/2].

    Source: Su et al. 2021, arXiv:2104.09864, eq. 15; linear: Chen et al. 2023, arXiv:2306.15595, eq. 4; llama3:
    Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.3, as in Meta's released code; yarn: Peng et al. 2023,
    arXiv:2309.00071, definition 2 (NTK-by-parts).
    """
    plain = (1.0 / np.float32(base) ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
    if stretch.kind == "none":
        return plain
    slow = plain / np.float32(stretch.factor)
    if stretch.kind == "linear":
        return slow
    if stretch.kind == "llama3":
        turns = stretch.context * plain / (2 * np.pi)
        spread = max(stretch.high - stretch.low, 1e-9)  # equal bounds blend nothing
        keep = np.clip((turns - stretch.low) / spread, 0, 1)
    else:

        def dim(turns: float) -> float:
            """The dim whose pair makes so many turns within the context."""
            return width * math.log(stretch.context / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = dim(stretch.high), dim(stretch.low)
        if stretch.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        keep = 1 - np.clip((np.arange(width // 2) - first) / (last - first or 0.001), 0, 1)
    return (slow * (1 - keep) + plain * keep).astype(np.float32)


def rotate(
    x: Float[Array, "b t n h"],
    position: Int[Array, "#b t"],
    turns: Float[np.ndarray, " half"],
    scale: float = 1.0,
    neighbours: bool = False,
) -> Float[Array, "b t n h"]:
    """Turn each pair of dims by position times its frequency, in float32: x [B T N H] -> [B T N H].

    Pairs are half a head apart (i, i + H/2), as in GPT-NeoX and Llama's hub files, or `neighbours` (2i, 2i + 1).
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    angle = position[:, :, None, None].astype(jnp.float32) * jnp.asarray(turns)[None, None, None]
    cos, sin = jnp.cos(angle) * scale, jnp.sin(angle) * scale
    y = x.astype(jnp.float32)
    one, two = (y[..., 0::2], y[..., 1::2]) if neighbours else jnp.split(y, 2, -1)
    both = one * cos - two * sin, two * cos + one * sin
    y = jnp.stack(both, -1).reshape(x.shape) if neighbours else jnp.concatenate(both, -1)
    return y.astype(x.dtype)
