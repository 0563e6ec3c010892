"""Vision Transformers on the Hugging Face hub: `vit.encoder.layer.0.attention.attention.query.weight` …

`architectures`, or without it the tensors, determine the head. The pooler of a bare network is ignored: no published
classifier has one.
"""

from collections.abc import Iterable

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.vit import Config
from models.pretrained.config_keys import Keys, hf_activation, label_keys, placeholder_names
from models.pretrained.layouts import vit_timm
from models.pretrained.layouts.vit_timm import embedding_rows
from models.pretrained.mapping import Row, affine, layer_norm

TYPES = ("vit",)
DIALECTS = {"timm": vit_timm}
HEADS = {"ViTModel": "none", "ViTForImageClassification": "classes"}
PREFIX = "vit."
HARMLESS = ("encoder_stride", "pooler_act", "pooler_output_size")  # of other heads


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers' ViTConfig."""
    has_classifier = any(name.startswith("classifier.") for name in keys.tensors)
    head = keys.architecture(HEADS, "classes" if has_classifier else "none")
    size = keys.take("image_size", default=224)
    patch = keys.take("patch_size", default=16)
    found = {
        "inputs": (*(size if isinstance(size, list) else (size, size)), keys.take("num_channels", default=3)),
        "patch": tuple(patch) if isinstance(patch, list) else patch,
        "width": keys.take("hidden_size", default=768),
        "depth": keys.take("num_hidden_layers", default=12),
        "heads": keys.take("num_attention_heads", default=12),
        "hidden": keys.take("intermediate_size", default=3072),
        "activation": keys.activation("hidden_act", default="gelu"),
        "head": head,
        "pool": "first" if head == "classes" else "none",
        "classes": keys.classes(),
        "qkv_bias": keys.take("qkv_bias", default=True),
        "dropout": keys.take("hidden_dropout_prob", default=0.0),
        "dropout_attention": keys.take("attention_probs_dropout_prob", default=0.0),
        "eps": keys.take("layer_norm_eps", default=1e-12),
    }
    want = (1, Config(**found).positions, found["width"])
    for name, shape in keys.tensors.items():
        if name.endswith("embeddings.position_embeddings") and shape != want:
            raise UsageError(f"tensor {name!r} is {shape}, not {want} as for an image of {found['inputs'][:2]}")
    return found


def check_overrides(fields: Fields, c: Config) -> None:
    """Raise UsageError for a Config with another grid than the file's, unless that is square and can be resized."""
    old = Config(inputs=fields["inputs"], patch=fields["patch"]).grid
    if c.grid != old and old[0] != old[1]:
        raise UsageError(f"positions of {old[0]} x {old[1]} patches cannot be resized to {c.grid[0]} x {c.grid[1]}")


def config(c: Config) -> Json:
    """The config.json of a Config. Raises UsageError for a Config that transformers' ViT cannot express."""
    pool = "first" if c.head == "classes" else "none"
    fixed = dict(pool=pool, class_token=True, position="learned", norm="tokens", layer_scale=None, drop_path=0)
    for name, only in fixed.items():
        if getattr(c, name) != only and not (name == "norm" and pool == "first"):
            raise UsageError(f"a published vit with head {c.head!r} has {name} = {only!r}, not {getattr(c, name)!r}")
    Y, X, C = c.inputs
    return {
        "model_type": "vit",
        "architectures": [next(name for name, head in HEADS.items() if head == c.head)],
        "image_size": Y if Y == X else [Y, X],
        "patch_size": c.patch if isinstance(c.patch, int) else list(c.patch),
        "num_channels": C,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.feed_forward,
        "hidden_act": hf_activation(c.activation),
        "qkv_bias": c.qkv_bias,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout if c.dropout_attention is None else c.dropout_attention,
        "layer_norm_eps": c.eps,
        **label_keys(placeholder_names(c.classes)),
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    D, N, H, F = c.width, c.heads, c.head_width, c.feed_forward
    top, layer = f"{PREFIX}embeddings.", f"{PREFIX}encoder.layer.{{}}."
    found = [
        *embedding_rows(
            c, f"{top}patch_embeddings.projection", f"{top}cls_token", f"{top}position_embeddings", smooth=False
        ),
        *layer_norm("blocks/norm1", f"{layer}layernorm_before", D),
        *affine("blocks/q", f"{layer}attention.attention.query", (D,), (N, H), c.qkv_bias),
        *affine("blocks/k", f"{layer}attention.attention.key", (D,), (N, H), c.qkv_bias),
        *affine("blocks/v", f"{layer}attention.attention.value", (D,), (N, H), c.qkv_bias),
        *affine("blocks/out", f"{layer}attention.output.dense", (N, H), (D,)),
        *layer_norm("blocks/norm2", f"{layer}layernorm_after", D),
        *affine("blocks/up", f"{layer}intermediate.dense", (D,), (F,)),
        *affine("blocks/down", f"{layer}output.dense", (F,), (D,)),
        *layer_norm("norm", f"{PREFIX}layernorm", D),
    ]
    return found + (affine("head", "classifier", (D,), (c.classes,)) if c.head == "classes" else [])


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of a pooler, and of a head that this network lacks."""
    return f"{PREFIX}pooler.dense.*", *(() if c.head == "classes" else ("classifier.*",))
