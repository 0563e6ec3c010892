"""Vision Transformer: an encoder of pre-norm blocks over the patches of an image.

Legend: B batch, Y X image rows and columns, C channels, I J patch rows and columns, P patches, T tokens (an optional
class token, then the patches), D width, L depth, N heads, H head width, F hidden.
Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1, initial values of its released code (Gaussians of the
standard deviation of its uniform ones); the small sizes of Touvron et al. 2021, arXiv:2012.12877, and Steiner et al.
2022, arXiv:2106.10270; mean pooling and sine positions of Beyer et al. 2022, arXiv:2205.01580; LayerScale of Touvron et
al. 2021, arXiv:2103.17239, eq. 1; stochastic depth (Huang et al. 2016, arXiv:1603.09382) with a rate that grows
linearly from 0 in the first block, as in the released code of arXiv:2012.12877.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Float

from models.blocks.attention.attention import attention
from models.blocks.attention.mask import AttentionMask
from models.blocks.decoder.stack import Layer, scan_layers
from models.blocks.transformer_layers import TransformerConfig, attention_specs, mlp, mlp_specs
from models.core.checks import COMPUTE, one_of, positive, probability, refuse
from models.core.fence import fence
from models.core.layers import (
    apply_scale,
    dense,
    drop_path,
    dropout,
    fold_in_each,
    layer_norm,
    linear,
    linear_specs,
    norm_specs,
    reshard,
)
from models.core.spec import Outputs, Place, Spec, constant, lecun_normal, normal, unsharded, zeros
from models.core.types import Array, Cache, Fields, Inputs, Params, Specs, Variables

TRAITS = frozenset({"classifier"})
INPUT = "image"
HEADS = ("classes", "none")
POOLS = ("first", "mean", "none")
POSITIONS = ("learned", "patches", "sines")
NORMS = ("tokens", "pooled")
ZERO_GRAD = {"blocks/k/bias": "adds one number to all scores of a query, which the softmax removes"}

_S: Fields = dict(width=384, depth=12, heads=6)
_B: Fields = dict(width=768, depth=12, heads=12)
_L: Fields = dict(width=1024, depth=24, heads=16)
SIZES: dict[str, Fields] = {
    "ti_16": dict(patch=16, width=192, depth=12, heads=3),
    "s_16": dict(patch=16, **_S),
    "s_32": dict(patch=32, **_S),
    "b_16": dict(patch=16, **_B),
    "b_32": dict(patch=32, **_B),
    "l_16": dict(patch=16, **_L),
    "l_32": dict(patch=32, **_L),
    "h_14": dict(patch=14, width=1280, depth=32, heads=16),
}


@dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """Shape and options of a Vision Transformer."""

    inputs: tuple[int, ...] = (224, 224, 3)  # Y X C
    patch: tuple[int, ...] | int = 16  # rows and columns, or one number for both
    head: str = "classes"  # the output: logits of classes, or vectors
    pool: str = "first"  # the vector: of the class token, the mean of the patches, or each token's
    classes: int = 1000
    class_token: bool = True
    position: str = "learned"  # learned, of every token | learned, of the patches | sines, of the patches
    norm: str = "tokens"  # the final norm: of every token, or of the pooled vector
    qkv_bias: bool = True
    layer_scale: float | None = None  # initial LayerScale, a factor per channel of each branch; None: no factors
    zero_head: bool = False  # the head starts at 0, as in the released code
    dropout_attention: float | None = None  # on the attention weights; None is `dropout`
    drop_path: float = 0.0  # probability of dropping the last block's branches; grows linearly from 0 in the first
    eps: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "inputs", "patch", "classes", "layer_scale")
        probability(self, "dropout_attention", "drop_path")
        one_of(self, head=HEADS, pool=POOLS, position=POSITIONS, norm=NORMS)
        if len(self.inputs) != 3:
            refuse(self, "inputs", "three numbers: rows, columns, channels")
        if len(self.kernel) != 2:
            refuse(self, "patch", "one number or two: rows, columns")
        if self.kernel[0] > self.inputs[0] or self.kernel[1] > self.inputs[1]:
            refuse(self, "patch", f"at most the image's {self.inputs[0]} x {self.inputs[1]}")
        if self.pool == "first" and not self.class_token:
            refuse(self, "class_token", "True for pool='first'")
        if self.pool == "none" and self.head != "none":
            refuse(self, "pool", "'first' or 'mean' for head='classes'")
        if self.pool == "none" and self.norm != "tokens":
            refuse(self, "norm", "'tokens' for pool='none'")
        if self.position == "sines" and (self.width < 8 or self.width % 4):
            refuse(self, "width", "8 or more and a multiple of 4 for position='sines'")

    @property
    def kernel(self) -> tuple[int, ...]:
        """I, J."""
        return (self.patch, self.patch) if isinstance(self.patch, int) else self.patch

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of whole patches; pixels left over at the right and bottom are ignored."""
        return self.inputs[0] // self.kernel[0], self.inputs[1] // self.kernel[1]

    @property
    def positions(self) -> int:
        """Rows of the position table."""
        return self.grid[0] * self.grid[1] + (self.class_token and self.position == "learned")


def traits(c: Config) -> frozenset[str]:
    """The traits of a Config: classifier, or without a head of classes encoder."""
    return TRAITS if c.head == "classes" else frozenset({"encoder"})


def fit(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields that the data determine: `inputs`, from the shape of a row."""
    return {"inputs": shapes["image"]} if "image" in shapes else {}


def specs(c: Config) -> Specs:
    """Specs of the parameters."""
    L, D = c.depth, c.width
    mlp_init = normal((2 / (D + c.feed_forward)) ** 0.5)
    patch = Spec(
        (*c.kernel, c.inputs[2], D), "rows columns channels_in width", lecun_normal, fan_in="rows columns channels_in"
    )
    params: Specs = {
        "embed": {"patch": {"kernel": patch, "bias": Spec((D,), "norm", zeros)}},
        "blocks": {
            "norm1": norm_specs(D, (L,)),
            **attention_specs(c, L, lecun_normal, qkv_bias=c.qkv_bias),
            "norm2": norm_specs(D, (L,)),
            **mlp_specs(c, L, mlp_init, mlp_init),
        },
        "norm": norm_specs(D),
    }
    if c.class_token:
        params["embed"]["class"] = Spec((D,), "norm", zeros)
    if c.position != "sines":
        params["embed"]["position"] = Spec((c.positions, D), "time embed", normal(0.02))
    if c.layer_scale is not None:
        scale = Spec((L, D), "layers norm", constant(c.layer_scale))
        params["blocks"] |= {"scale1": scale, "scale2": scale}
    if c.head == "classes":
        init = zeros if c.zero_head else lecun_normal
        params["head"] = linear_specs(D, c.classes, "embed classes", init, "classes")
    return {"params": params}


def sines(rows: int, columns: int, width: int) -> Float[np.ndarray, "p d"]:
    """Sines and cosines of a patch's column, then of its row, of D/4 wavelengths from 2 pi to 20000 pi -> [P D].

    Source: Beyer et al. 2022, arXiv:2205.01580, after Chen, Xie, He 2021, arXiv:2104.02057, whose wavelengths end
    one step earlier.
    """
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = (n.reshape(-1, 1) * frequencies for n in np.mgrid[:rows, :columns])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def embed(image: Array, p: Params, c: Config, place: Place) -> Float[Array, "b t d"]:
    """The tokens of an image, with their positions: image [B Y X C] -> [B T D].

    The patches' convolution has its kernel's size as stride, and is computed as one product.
    """
    B, D = image.shape[0], c.width
    rows, columns = c.grid
    I, J = c.kernel
    out = place("batch query width")
    x = image[:, : rows * I, : columns * J]
    cut = (B, rows, I, columns, J, c.inputs[2])
    x = jnp.reshape(x, cut, out_sharding=place("batch rows rows columns columns width"))
    x = linear("byixjc,ijcd->byxd", x, p["patch"], place("batch rows columns width"))
    x = jnp.reshape(x, (B, rows * columns, D))
    first = p.get("class")
    if c.position == "sines":
        table = jnp.asarray(sines(rows, columns, D))
    else:
        table = reshard(p["position"], place("time width"))
    x = x + table[None, c.positions - rows * columns :].astype(x.dtype)
    if first is None:
        return x
    first = first + table[0] if c.position == "learned" else first
    first = reshard(jnp.broadcast_to(first.astype(x.dtype), (B, 1, D)), out)
    return jnp.concatenate([first, x], 1)


def apply(
    variables: Variables,
    inputs: Inputs,
    c: Config,
    *,
    train: bool = False,
    key: Array | None = None,
    cache: None = None,
    place: Place = unsharded,
) -> Outputs:
    """Logits or vectors by `head` and `pool`, float32: image [B Y X C] -> [B classes], [B D] or [B T D].

    `key` is one PRNG key per row, [B]; None disables dropout. Raises UsageError for an image of another size.
    """
    p = variables["params"]
    image = inputs["image"]
    keys = key if train else None
    stream = place("batch query width")
    if c.inputs != image.shape[1:]:
        refuse(c, "inputs", f"{image.shape[1:]}, as the image is")
    x = embed(image.astype(COMPUTE[c.compute]), p["embed"], c, place)
    x = dropout(x, keys, c.dropout, "embed", stream)
    position = jnp.arange(x.shape[1])[None]
    mask = AttentionMask(position, position, causal=False, contiguous=True)

    def unsplit(axes: str) -> PartitionSpec | None:
        """A placement that does not shard tokens over cp: with a class token their number is odd."""
        return place(axes.replace("seq", "query"))

    def branch(x: Array, p: Params, keys: Array | None, index: Array, number: int) -> Array:
        x = apply_scale(x, p[f"scale{number}"]) if c.layer_scale is not None else x
        x = dropout(x, keys, c.dropout, f"branch{number}", stream)
        rate = c.drop_path * index / max(c.depth - 1, 1)
        return drop_path(x, keys, rate, f"path{number}") if c.drop_path else x

    def block(layer: Layer, x: Array, p: Params, index: Array, _: Cache | None) -> tuple[Array, None, None]:
        own = fold_in_each(keys, index)
        over = place("batch query heads head_dim")
        h = layer_norm(x, p["norm1"], c.eps)
        q, k, v = (linear("btd,dnh->btnh", h, p[name], over) for name in ("q", "k", "v"))
        rate = c.dropout if c.dropout_attention is None else c.dropout_attention
        scale = c.head_width**-0.5
        a = attention(q, k, v, mask, scale=scale, backend=c.attention, dropout_rate=rate, keys=own, place=unsplit)
        x = fence(x + branch(linear("btnh,nhd->btd", a, p["out"], stream), p, own, index, 1))
        h = mlp(layer_norm(x, p["norm2"], c.eps), p, c.activation, place("batch query mlp"), stream)
        return x + branch(h, p, own, index, 2), None, None

    layers = (Layer("block"),) * c.depth
    x, _, _ = scan_layers(block, layers, x, {"blocks": p["blocks"]}, None, remat=c.remat, scan=c.scan)
    x = layer_norm(x, p["norm"], c.eps) if c.norm == "tokens" else x
    if c.pool == "first":
        x = x[:, 0]
    elif c.pool == "mean":
        x = jnp.mean(x[:, int(c.class_token) :], 1)
    x = layer_norm(x, p["norm"], c.eps) if c.norm == "pooled" else x
    if c.head == "classes":
        return Outputs(dense(x, p["head"], place("batch classes"), jnp.float32))
    return Outputs(x.astype(jnp.float32))
