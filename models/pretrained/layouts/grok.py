"""Grok-1 as xAI released it: parameters by their paths in the release's tree, settings by their names in its run.py.

The release is pickled, which Canon does not read, and has no config.json. To load it as a folder of the hub, convert it
once to safetensors or .npz under its paths (8-bit `transformer/decoder_layer_0/moe/linear/w.weight` and `w.scales`, or
unquantised `w`), and write a config.json of `"model_type": "grok-1"` with run.py's settings, those of TransformerConfig
under "model". Names of PyTorch ports are not supported. Exports are unquantised.

Fields that only training uses, dropout and aux_loss_weight, are not in a config.json.
"""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.grok import Config
from models.pretrained.config_keys import Keys
from models.pretrained.mapping import Row, same

TYPES = ("grok-1",)
HARMLESS = ("eos_token", "embedding_init_scale", "name", "fprop_dtype", "init_scale_override", "shard_embeddings")
HARMLESS_INSIDE = tuple("vocab_size capacity_factor name init_scale shard_activations data_axis model_axis".split())
ALWAYS: Fields = {  # constants of the release's code
    **dict(activation="gelu_tanh", tied=True, eps=1e-5, rope="none", rope_base=10000.0, attn_logit_softcap=30.0)
}


def fields(keys: Keys) -> Fields:
    """Fields of a Config from a config.json; absent keys have the defaults of the release's dataclasses."""
    inside = keys.nested(keys.take("model", default={}, kind=dict))
    width = inside.count("emb_size")
    keys.require_value("model_size", 0, width, None)
    found = {
        "vocab": keys.require("vocab_size"),
        "context": keys.require("sequence_len"),
        "width": width,
        "depth": inside.count("num_layers"),
        "heads": inside.require("num_q_heads"),
        "kv_heads": inside.require("num_kv_heads"),
        "head_dim": inside.require("key_size"),
        "widening": inside.number("widening_factor", default=4.0),
        "experts": inside.count("num_experts"),
        "experts_per_token": inside.take("num_selected_experts", default=1),
        "pad_token": keys.get("pad_token", None),
        "embed_multiplier": keys.number("embedding_multiplier_scale", default=1.0),
        "attention_multiplier": inside.number("attn_output_multiplier", default=1.0),
        "output_multiplier": keys.number("output_multiplier_scale", default=1.0),
    }
    inside.refuse_unread(HARMLESS_INSIDE)
    return {**found, **ALWAYS}


def config(c: Config) -> Json:
    """The config.json of a Config. Raises UsageError for a Config that the release's code cannot express."""
    for name, value in ALWAYS.items():
        if getattr(c, name) != value:
            raise UsageError(f"the published Grok has {name} = {value}, not {getattr(c, name)}")
    if c.expert_width % 8:
        raise UsageError(f"the hidden width of the published Grok's experts is a multiple of 8, not {c.expert_width}")
    wide = 3 * c.expert_width / (2 * c.width) if c.hidden or c.expert_hidden else c.widening
    return {
        "model_type": "grok-1",
        "vocab_size": c.vocab,
        "sequence_len": c.context,
        "pad_token": c.pad_token,
        "embedding_multiplier_scale": c.embed_scale,
        "output_multiplier_scale": c.output_multiplier,
        "model": {
            "emb_size": c.width,
            "num_layers": c.depth,
            "num_q_heads": c.heads,
            "num_kv_heads": c.num_kv_heads,
            "key_size": c.head_width,
            "widening_factor": wide,
            "attn_output_multiplier": c.attention_scale,
            "num_experts": c.experts,
            "num_selected_experts": c.experts_per_token,
        },
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout; the release's matrices have their inputs first, as ours."""
    D, N, K, H, E, F = c.width, c.heads, c.num_kv_heads, c.head_width, c.experts, c.expert_width
    layer, ends = "transformer/decoder_layer_{}/", "language_model/"
    found = [
        same("embed/token", f"{ends}in_out_embed/embeddings", c.vocab, D),
        same("norm/scale", f"{ends}rms_norm/scale", D),
        same("blocks/router/kernel", f"{layer}router/w", D, E),
        same("blocks/experts/gate/kernel", f"{layer}moe/linear/w", E, D, F),
        same("blocks/experts/up/kernel", f"{layer}moe/linear_v/w", E, D, F),
        same("blocks/experts/down/kernel", f"{layer}moe/linear_1/w", E, F, D),
    ]
    for name, theirs in (("norm1", ""), ("norm1_post", "_1"), ("norm2", "_2"), ("norm2_post", "_3")):
        found.append(same(f"blocks/{name}/scale", f"{layer}rms_norm{theirs}/scale", D))
    for name, theirs, split, shape in (
        ("q", "query", (D, N, H), (D, N * H)),
        ("k", "key", (D, K, H), (D, K * H)),
        ("v", "value", (D, K, H), (D, K * H)),
        ("out", "linear", (N, H, D), (N * H, D)),
    ):
        found.append(Row(f"blocks/{name}/kernel", f"{layer}multi_head_attention/{theirs}/w", split, (0, 1, 2), shape))
    return found
