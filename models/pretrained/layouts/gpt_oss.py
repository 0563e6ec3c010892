"""gpt-oss on the Hugging Face hub: all experts of a layer in one tensor, with gate and up in alternating columns.

The released files have the experts as MXFP4, which `quantised` dequantises.
"""

from documents import Json
from models.core.types import Fields
from models.families.gpt_oss import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row, affine, same

TYPES = ("gpt_oss",)
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
HARMLESS = ("initial_context_length", "hidden_act", "experts_per_token")  # duplicates of other keys, or not used
YARN = {  # the default of transformers without keys of rotary frequencies
    **dict(rope_type="yarn", factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False),
    "original_max_position_embeddings": 4096,
}


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    found = decoders.decoder_fields(keys, 131072)
    kinds = decoders.read_layer_types(keys, found["depth"], ("full", "sliding"))
    if kinds and "sliding" in kinds:
        found["sliding_layers"] = tuple(i for i, kind in enumerate(kinds) if kind == "sliding")
    return found | {
        "window": decoders.read_window(keys, kinds, 128),
        "eps": keys.take("rms_norm_eps", default=1e-5),
        "kv_heads": keys.get("num_key_value_heads", 8),
        "head_dim": keys.take("head_dim", default=64),
        "attention_bias": keys.take("attention_bias", default=True),
        "experts": keys.take("num_local_experts", "num_experts", default=128),
        "experts_per_token": keys.take("num_experts_per_tok", default=4),
        "swiglu_alpha": keys.take("swiglu_alpha", default=1.702),
        "swiglu_limit": keys.take("swiglu_limit", default=7.0),
        **decoders.read_aux_loss(keys),
        **decoders.read_rope(keys, found["context"], base=150000.0, absent=YARN),
    }


def config(c: Config) -> Json:
    """The config.json of a Config."""
    return {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        **decoders.gqa_keys(c),
        **decoders.rope_keys(c),
        "intermediate_size": c.expert_width,
        "attention_bias": c.attention_bias,
        "sliding_window": c.window or 128,  # transformers requires it, with sliding layers or not
        "layer_types": [decoders.LAYER_TYPES[layer.kind] for layer in c.layers],
        "num_local_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        **decoders.aux_loss_keys(c),
        "swiglu_alpha": c.swiglu_alpha,
        "swiglu_limit": c.swiglu_limit,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    E, D, F = c.experts, c.width, c.expert_width
    layer = decoders.LAYER
    found = [
        *decoders.embed_and_head_rows(c),
        *decoders.norm_rows(c, "blocks"),
        *decoders.attention_rows(c, "blocks", c.attention_bias),
        same("blocks/sink", f"{layer}self_attn.sinks", c.heads),
        *affine("blocks/router", f"{layer}mlp.router", (D,), (E,)),
        same("blocks/experts/down/kernel", f"{layer}mlp.experts.down_proj", E, F, D),
        same("blocks/experts/down/bias", f"{layer}mlp.experts.down_proj_bias", E, D),
    ]
    for i, name in enumerate(("gate", "up")):
        tensor = f"{layer}mlp.experts.gate_up_proj"
        part = (..., i)
        found += [
            Row(f"blocks/experts/{name}/kernel", tensor, (E, D, F, 2), (0, 1, 2), (E, D, 2 * F), part=part),
            Row(f"blocks/experts/{name}/bias", f"{tensor}_bias", (E, F, 2), (0, 1), (E, 2 * F), part=part),
        ]
    return found
