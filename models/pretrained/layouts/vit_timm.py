"""Vision Transformers in timm: `blocks.0.attn.qkv.weight`, and a config.json with an `architecture`. Read only.

The tensors' shapes determine all fields but the heads, the pool and the size of an image that is not square: 14 x 16
patches and a class token look like 15 x 15 patches.
Source: Wightman 2019, PyTorch Image Models (timm), github.com/huggingface/pytorch-image-models.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from errors import UsageError
from models.core.types import Fields
from models.families.vit import Config
from models.pretrained.config_keys import Keys
from models.pretrained.formats.interpolate import ResizePositions
from models.pretrained.mapping import Row, affine, layer_norm, packed_qkv, same

_224_384 = ("tiny_patch16", "small_patch16", "small_patch32", "base_patch16", "base_patch32")
_DEIT3 = ("small_patch16", "medium_patch16", "base_patch16", "large_patch16")
TYPES = (  # architectures without extensions
    *(f"vit_{name}_{size}" for name in (*_224_384, "large_patch16", "large_patch32") for size in (224, 384)),
    *("vit_small_patch8_224", "vit_base_patch8_224", "vit_base_patch16_224_miil", "vit_large_patch14_224"),
    *("vit_huge_patch14_224", "vit_huge_patch14_gap_224", "vit_huge_patch16_gap_448"),
    *(f"deit_{name}_patch16_224" for name in ("tiny", "small", "base")),
    *(f"deit3_{name}_{size}" for name in _DEIT3 for size in (224, 384)),
    *("deit_base_patch16_384", "deit3_huge_patch14_224"),
)
HEADS = dict(tiny=3, small=6, medium=8, base=12, large=16, huge=16)
POOLS = {"token": "first", "avg": "mean"}
HARMLESS = ("num_classes", "num_features", "label_names", "label_descriptions")
FROM_TENSORS = (  # arguments that follow from the tensors
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias"),
    *("init_values", "class_token", "no_embed_class", "fc_norm", "dynamic_img_size"),
)


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json and the tensors' shapes."""
    given = keys.nested(keys.take("model_args", default={}, kind=dict))
    heads = given.take("num_heads", default=HEADS[keys.require("architecture").split("_")[1]])
    input_size = keys.nested(keys.take("pretrained_cfg", default={}, kind=dict)).take("input_size", kind=list)
    sides = _image_sides(given.take("img_size", default=input_size and input_size[1:]))
    pool = given.take("global_pool", default=keys.take("global_pool", default="token"))
    if pool not in POOLS:
        raise UsageError(f"config.json has global_pool = {pool!r}; legal: {', '.join(POOLS)}")
    inferred = fields_from_shapes(keys.tensors, sides, given.take("no_embed_class", kind=bool))
    given.refuse_unread(FROM_TENSORS)
    return {**inferred, "heads": heads, "pool": POOLS[pool]}


def fields_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], sides: tuple[int, int] | None = None, bare: bool | None = None
) -> Fields:
    """The Config fields that follow from tensor shapes: all but heads and pool.

    `sides` are those of the image, by default a square; `bare` is whether the class token has no position, None if
    unknown. Raises UsageError for shapes that are not of such a network, and for positions of another image.
    """
    try:
        (D, C, I, J), count = shapes["patch_embed.proj.weight"], shapes["pos_embed"][1]
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(f"these tensors are not of a Vision Transformer of timm: {error}") from None
    first = "cls_token" in shapes
    legal = (True,) if not first else (True, False) if bare is None else (bare,)
    (Y, X), alone = _infer_image(count, (I, J), sides, legal)
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name))
    return {
        "inputs": (Y, X, C),
        "patch": I if I == J else (I, J),
        "width": D,
        "depth": depth,
        "hidden": hidden,
        "head": "classes" if "head.weight" in shapes else "none",
        **({"classes": shapes["head.weight"][0]} if "head.weight" in shapes else {}),
        "class_token": first,
        "position": "patches" if first and alone else "learned",
        "norm": "pooled" if "fc_norm.weight" in shapes else "tokens",
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
    }


def _infer_image(
    count: int, patch: tuple[int, int], sides: tuple[int, int] | None, legal: tuple[bool, ...]
) -> tuple[tuple[int, int], bool]:
    """The sides of an image with `count` positions, and whether these are of its patches alone.

    `legal` are the possible values of the latter. At most one fits, as no two squares of whole patches differ by one
    patch. Raises UsageError if none fits.
    """
    I, J = patch
    for alone in legal:
        patches = count if alone else max(count - 1, 0)
        side = math.isqrt(patches * I * J)
        Y, X = sides or (side, side)
        if 0 < patches == Y // I * (X // J):
            return (Y, X), alone
    image = f"an image of {sides[0]} x {sides[1]}" if sides else "a square image, and there is no img_size"
    raise UsageError(f"pos_embed has {count} positions, which with patches of {I} x {J} do not fit {image}")


def _image_sides(size: Any) -> tuple[int, int] | None:
    """Rows and columns of an image from img_size; None if that is None. Raises UsageError for another value."""
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise UsageError(f"config.json has img_size {size!r}; it must be one side or two")
    return sides[0], sides[1]


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    D, N, H, F = c.width, c.heads, c.head_width, c.feed_forward
    found = [
        *embedding_rows(c, "patch_embed.proj", "cls_token", "pos_embed", smooth=True),
        *layer_norm("blocks/norm1", "blocks.{}.norm1", D),
        *packed_qkv("blocks", "blocks.{}.attn.qkv.weight", "blocks.{}.attn.qkv.bias", D, N, c.qkv_bias),
        *affine("blocks/out", "blocks.{}.attn.proj", (N, H), (D,)),
        *layer_norm("blocks/norm2", "blocks.{}.norm2", D),
        *affine("blocks/up", "blocks.{}.mlp.fc1", (D,), (F,)),
        *affine("blocks/down", "blocks.{}.mlp.fc2", (F,), (D,)),
        *layer_norm("norm", "fc_norm" if c.norm == "pooled" else "norm", D),
    ]
    if c.layer_scale is not None:
        found += [same(f"blocks/scale{i}", f"blocks.{{}}.ls{i}.gamma", D) for i in (1, 2)]
    return found + (affine("head", "head", (D,), (c.classes,)) if c.head == "classes" else [])


def embedding_rows(c: Config, patch: str, token: str, position: str, smooth: bool) -> list[Row]:
    """The patches' convolution, the class token and the positions.

    `smooth` is whether resizing positions is antialiased.
    """
    I, J = c.kernel
    C, D, T = c.inputs[2], c.width, c.positions
    found = [
        Row("embed/patch/kernel", f"{patch}.weight", (D, C, I, J), (2, 3, 1, 0), (D, C, I, J)),
        same("embed/patch/bias", f"{patch}.bias", D),
    ]
    if c.class_token:
        found.append(Row("embed/class", token, (D,), (0,), (1, 1, D)))
    if c.position != "sines":
        other = ResizePositions(c.grid, T - c.grid[0] * c.grid[1], smooth)
        found.append(Row("embed/position", position, (T, D), (0, 1), (1, T, D), resize=other))
    return found


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of a head that this network lacks."""
    return () if c.head == "classes" else ("head.*",)
