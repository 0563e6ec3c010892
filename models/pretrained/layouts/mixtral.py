"""Mixtral and Qwen 3's mixtures of experts on the Hugging Face hub.

Mixtral's files have `block_sparse_moe.experts.0.w1` (gate), `w3` (up), `w2` (down); Qwen's `mlp.experts.0.gate_proj`.
"""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.mixtral import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row, linear

TYPES = ("mixtral", "qwen3_moe")
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
HARMLESS: tuple[str, ...] = ()


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    qwen = keys.require("model_type") == "qwen3_moe"
    found = decoders.decoder_fields(keys, 32768 if qwen else 131072)
    depth = found["depth"]
    hidden = found["hidden"]
    found["eps"] = keys.take("rms_norm_eps", default=1e-6 if qwen else 1e-5)
    found |= {
        "head_dim": keys.take("head_dim"),
        "activation": keys.activation("hidden_act", default="silu"),
        "experts_per_token": keys.take("num_experts_per_tok", default=8 if qwen else 2),
        "qk_norm": qwen,
        **decoders.read_aux_loss(keys),
        **decoders.read_rope(keys, found["context"], base=1e4 if qwen else 1e6),
    }
    if not qwen:
        keys.require_value("router_jitter_noise", 0.0, 0, None)
        heads = keys.get("num_key_value_heads", 8)
        window = keys.get("sliding_window", None)
        experts = keys.take("num_local_experts", default=8)
        return found | {"kv_heads": heads, "window": window, "experts": experts, "expert_hidden": hidden}
    step = keys.count("decoder_sparse_step", default=1)
    without = keys.take("mlp_only_layers", default=[], kind=list)
    if any(type(i) is not int for i in without):
        raise UsageError(f"config.json has mlp_only_layers = {without}; they must be layer numbers")
    keys.require_value("qkv_bias", False, None)  # this and the next two are redundant keys of older files
    keys.require_value("use_qk_norm", True, None)
    keys.require_value("shared_expert_intermediate_size", 0, None)
    experts = keys.take("num_experts", "num_local_experts", default=128)
    window = keys.get("sliding_window", 4096) if keys.take("use_sliding_window", default=False, kind=bool) else None
    keys.take("max_window_layers")  # in transformers every layer slides
    return found | {
        "kv_heads": keys.get("num_key_value_heads", 4),
        "window": window,
        "experts": experts,
        "expert_hidden": keys.take("moe_intermediate_size", default=768),
        "norm_topk": keys.take("norm_topk_prob", default=False),
        "attention_bias": keys.take("attention_bias", default=False),
        "dense_layers": tuple(i for i in range(depth) if i in without or not experts or (i + 1) % step),
    }


def config(c: Config) -> Json:
    """The config.json of a Config, as Mixtral's or Qwen 3's. Raises UsageError if neither can express it."""
    kinds = {layer.kind for layer in c.layers}
    if len(kinds) > 1:
        raise UsageError(
            f"a published mixture of experts has a window in all layers or none; sliding_layers = {c.sliding_layers}"
        )
    window = c.window if kinds == {"sliding"} else None
    shared = {
        **decoders.gqa_keys(c),
        **decoders.rope_keys(c),
        "num_experts_per_tok": c.experts_per_token,
        "num_local_experts": c.experts,
        **decoders.aux_loss_keys(c),
        "sliding_window": window,
    }
    if c.qk_norm:
        return {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            **shared,
            "num_experts": c.experts,
            "moe_intermediate_size": c.expert_width,
            "norm_topk_prob": c.norm_topk,
            "attention_bias": c.attention_bias,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(c.dense_layers),
            "use_sliding_window": window is not None,
        }
    for name, plain in (("attention_bias", False), ("dense_layers", ()), ("norm_topk", True)):
        if getattr(c, name) != plain:
            raise UsageError(
                f"a published mixture of experts with {name} = {getattr(c, name)} has qk_norm = True, as Qwen 3"
            )
    return {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        **shared,
        "intermediate_size": c.expert_width,
        "router_jitter_noise": 0.0,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    found = decoders.embed_and_head_rows(c)
    for stack, layers in decoders.layers_by_stack(c).items():
        at = f"blocks/{stack}"
        found += decoders.norm_rows(c, at, layers=layers)
        found += decoders.attention_rows(c, at, c.attention_bias, c.qk_norm, layers=layers)
        if stack == "dense":
            found += decoders.mlp_rows(c.width, c.feed_forward, at, layers=layers)
            continue
        module = decoders.LAYER + ("mlp" if c.qk_norm else "block_sparse_moe")
        names = ("gate_proj", "up_proj", "down_proj") if c.qk_norm else ("w1", "w3", "w2")
        found.append(linear(f"{at}/router/kernel", f"{module}.gate.weight", (c.width,), (c.experts,), layers=layers))
        found += decoders.expert_rows(c, at, module, names, layers=layers)
    return found
