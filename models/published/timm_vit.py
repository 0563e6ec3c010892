"""Vision Transformers as timm names them: `blocks.0.attn.qkv.weight`, and its config.json of an `architecture`.

The tensors tell all but the heads, the pool and the sides of an image that is no square. Read, not written.
Source: Wightman 2019, PyTorch Image Models (timm), github.com/huggingface/pytorch-image-models.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from errors import UsageError
from models.published.layout import Keys, Row, affine, same
from models.published.vit import embedded, norm
from models.vit import Config

MARK = "patch_embed.proj.weight"  # a tensor by which such files are known
ARCHITECTURE = re.compile(r"(?:vit|deit|deit3)_(tiny|small|base|large|huge)_patch\d+(?:_gap)?_\d+")
HEADS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16), "huge": (1280, 16)}
POOLS = {"token": "first", "avg": "mean"}
HARMLESS = ("num_classes", "num_features", "label_names", "label_descriptions")
TOLD = (  # arguments that the tensors tell
    *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "mlp_ratio", "qkv_bias"),
    *("init_values", "class_token", "no_embed_class", "fc_norm", "dynamic_img_size"),
)


def knows(values: dict[str, Any]) -> bool:
    """Whether a config.json is of a plain Vision Transformer of timm."""
    return "model_type" not in values and bool(ARCHITECTURE.fullmatch(str(values.get("architecture"))))


def fields(keys: Keys) -> dict[str, Any]:
    """The fields of a Config that a config.json tells beside the tensors."""
    match = ARCHITECTURE.fullmatch(keys.need("architecture"))
    assert match is not None
    given = keys.inner(keys.take("model_args", default={}, kind=dict))
    channels, *sides = keys.take("pretrained_cfg", default={}, kind=dict).get("input_size") or (3, 0, 0)
    sides = given.take("img_size", default=sides)
    pool = given.take("global_pool", default=keys.take("global_pool", default="token"))
    if pool not in POOLS:
        raise UsageError(f"config.json has global_pool = {pool!r}; only {' or '.join(map(repr, POOLS))} is known here")
    found = {"heads": given.take("num_heads", default=HEADS[match[1]][1]), "pool": POOLS[pool]}
    given.done(TOLD)
    return found | ({"inputs": (*sides, channels)} if isinstance(sides, list) and sides[0] != sides[1] else {})


def fields_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields of a Config that tensors tell: all but heads, which their width tells of the usual sizes, and pool.

    Raises UsageError where a tensor is not there that each such network has.
    """
    try:
        (D, C, I, J), count = shapes[MARK], shapes["pos_embed"][1]
        hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(f"these tensors are of no Vision Transformer of timm: {error}") from None
    first = "cls_token" in shapes
    alone = first and math.isqrt(count) ** 2 == count  # the class token has no position
    side = math.isqrt(count - (first and not alone))
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name))
    scale = "blocks.0.ls1.gamma" in shapes
    return {
        "inputs": (side * I, side * J, C),
        "patch": I if I == J else (I, J),
        "width": D,
        "depth": depth,
        "heads": dict(HEADS.values()).get(D),
        "hidden": hidden,
        "head": "classes" if "head.weight" in shapes else "none",
        **({"classes": shapes["head.weight"][0]} if "head.weight" in shapes else {}),
        "class_token": first,
        "pool": "first" if first else "mean",
        "position": "patches" if alone else "learned",
        "norm": "pooled" if "fc_norm.weight" in shapes else "tokens",
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "layer_scale": 1e-5 if scale else None,
    }


def rows(c: Config) -> list[Row]:
    """The layout."""
    D, N, H, F = c.width, c.heads, c.width // c.heads, c.feed_forward
    found = [
        *embedded(c, "patch_embed.proj", "cls_token", "pos_embed"),
        *norm("blocks/norm1", "blocks.{}.norm1", D),
        *(row for i, name in enumerate(("q", "k", "v")) for row in _third(c, f"blocks/{name}", i)),
        *affine("blocks/out", "blocks.{}.attn.proj", (N, H), (D,)),
        *norm("blocks/norm2", "blocks.{}.norm2", D),
        *affine("blocks/up", "blocks.{}.mlp.fc1", (D,), (F,)),
        *affine("blocks/down", "blocks.{}.mlp.fc2", (F,), (D,)),
        *norm("norm", "fc_norm" if c.norm == "pooled" else "norm", D),
    ]
    if c.layer_scale is not None:
        found += [same(f"blocks/scale{i}", f"blocks.{{}}.ls{i}.gamma", D) for i in (1, 2)]
    return found + (affine("head", "head", (D,), (c.classes,)) if c.head == "classes" else [])


def _third(c: Config, path: str, i: int) -> list[Row]:
    """Queries, keys or values out of the one product that makes all three."""
    D, N, H = c.width, c.heads, c.width // c.heads
    kernel = Row(f"{path}/kernel", "blocks.{}.attn.qkv.weight", (3, N, H, D), (2, 0, 1), (3 * D, D), part=(i,))
    bias = Row(f"{path}/bias", "blocks.{}.attn.qkv.bias", (3, N, H), (0, 1), (3 * D,), part=(i,))
    return [kernel, bias] if c.qkv_bias else [kernel]


def ignored(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """A head that this network is not of."""
    return () if c.head == "classes" else ("head.*",)
