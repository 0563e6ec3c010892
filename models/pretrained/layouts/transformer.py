"""torch.nn.Transformer: `encoder.layers.0.self_attn.in_proj_weight`, `decoder.layers.1.multihead_attn.out_proj.bias`.

That module has neither embeddings nor a head. Ours are named `embed.weight` (tokens), `source_embed.weight` (if the
source has its own), `position.weight` and `source_position.weight` (learned positions), and `head.weight`. The shapes
do not determine the heads, which must be given, nor the activation, the order of norms and the scale of embeddings,
which have the defaults of Config.
"""

import re

from errors import UsageError
from models.core.types import Fields
from models.families.transformer import Config
from models.pretrained.mapping import Row, affine, layer_norm, packed_qkv, same

REQUIRED_FIELDS = ("heads",)


def fields_from_shapes(shapes: dict[str, tuple[int, ...]]) -> Fields:
    """Config fields from the shapes of a state dict."""
    try:
        (hidden, width), (vocab, _) = shapes["encoder.layers.0.linear1.weight"], shapes["embed.weight"]
    except (KeyError, ValueError):
        raise UsageError(
            f"no Transformer of torch: it needs the matrices encoder.layers.0.linear1.weight and embed.weight; "
            f"got {', '.join(sorted(shapes)[:4]) or 'no tensors'}"
        ) from None
    depths = dict.fromkeys(("encoder", "decoder"), 1)
    for name in shapes:
        if found := re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.linear1\.weight", name):
            side, number = found.groups()
            depths[side] = max(depths[side], 1 + int(number))
    source = shapes.get("source_embed.weight")
    learned = {"positions": "learned", "context": shapes["position.weight"][0]} if "position.weight" in shapes else {}
    return {
        "vocab": vocab,
        "source_vocab": source and source[0],
        "width": width,
        "hidden": hidden,
        "depth": depths["encoder"],
        "decoder_depth": depths["decoder"],
        "tied": "none" if "head.weight" in shapes else "decoder" if source else "all",
        "final_norm": "encoder.norm.weight" in shapes,
        "bias": "encoder.layers.0.linear1.bias" in shapes,
        **learned,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    V, D, N, H, F = c.vocab, c.width, c.heads, c.head_width, c.feed_forward

    def attention(ours: str, theirs: str) -> list[Row]:
        packed = packed_qkv(ours, f"{theirs}.in_proj_weight", f"{theirs}.in_proj_bias", D, N, c.bias)
        return [*affine(f"{ours}/out", f"{theirs}.out_proj", (N, H), (D,), c.bias), *packed]

    def side(name: str, attentions: dict[str, str]) -> list[Row]:
        ours, theirs = f"{name}/blocks", f"{name}.layers.{{}}"
        found: list[Row] = []
        for key, module in attentions.items():
            found += attention(f"{ours}/{key}", f"{theirs}.{module}")
        found += affine(f"{ours}/up", f"{theirs}.linear1", (D,), (F,), c.bias)
        found += affine(f"{ours}/down", f"{theirs}.linear2", (F,), (D,), c.bias)
        for i in range(1, len(attentions) + 2):
            found += layer_norm(f"{ours}/norm{i}", f"{theirs}.norm{i}", D, c.bias)
        return found + (layer_norm(f"{name}/norm", f"{name}.norm", D, c.bias) if c.has_final_norm else [])

    found = [
        *side("encoder", {"attention": "self_attn"}),
        *side("decoder", {"attention": "self_attn", "cross": "multihead_attn"}),
        same("embed/token", "embed.weight", V, D),
    ]
    if c.tied != "all":
        found.append(same("embed/source", "source_embed.weight", c.source_vocab or V, D))
    if c.tied == "none":
        found.append(same("head", "head.weight", V, D))
    if c.positions == "learned":
        found += [same(f"embed/{n}", f"{n}.weight", c.context, D) for n in ("position", "source_position")]
    return found
