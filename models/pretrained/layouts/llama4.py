"""Llama 4's language model on the Hugging Face hub: all experts of a layer in one tensor, gate before up.

In rows padded on the left, transformers counts the padding into a query's temperature; Canon uses its position only.
"""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.llama4 import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row, linear, same

TYPES = ("llama4_text",)
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
# transformers has no auxiliary loss in Llama 4
HARMLESS = tuple("output_router_logits router_aux_loss_coef for_llm_compressor cache_implementation".split())


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    keys.set_defaults(vocab_size=202048, hidden_size=5120, intermediate_size=8192)
    keys.set_defaults(num_hidden_layers=48, num_attention_heads=40)
    found = decoders.decoder_fields(keys, 131072)
    depth = found["depth"]
    hidden = found["hidden"]
    keys.require_value("router_jitter_noise", 0.0, 0, None)
    interval = keys.count("no_rope_layer_interval", default=4)
    flags = keys.take("no_rope_layers", kind=list)
    rope = [bool(flag) for flag in flags] if flags else [bool((i + 1) % interval) for i in range(depth)]
    step = keys.count("interleave_moe_layer_step", default=1)
    routed = keys.take("moe_layers", kind=list)
    routed = range(step - 1, depth, step) if routed is None else routed
    kinds = decoders.read_layer_types(keys, depth, ("full", "chunked"))
    if len(rope) != depth or any(flag not in (0, 1) for flag in flags or ()):
        raise UsageError(f"config.json: no_rope_layers = {flags} must have {depth} entries, each 0 or 1")
    chunk = keys.get("attention_chunk_size", 8192)
    if kinds and kinds != ["chunked" if on and chunk else "full" for on in rope]:
        raise UsageError(
            "config.json: layer_types and no_rope_layers disagree: the chunked layers must be those with rope"
        )
    return found | {
        "eps": keys.take("rms_norm_eps", default=1e-5),
        "kv_heads": keys.get("num_key_value_heads", 8),
        "head_dim": keys.take("head_dim", default=128),
        "hidden": keys.take("intermediate_size_mlp", default=16384),
        "expert_hidden": hidden,
        "activation": keys.activation("hidden_act", default="silu"),
        "attention_bias": keys.take("attention_bias", default=False),
        "qk_norm": keys.take("use_qk_norm", default=True),
        "chunk": chunk,
        "nope_layers": tuple(i for i, on in enumerate(rope) if not on),
        "dense_layers": tuple(i for i in range(depth) if i not in routed),
        "attn_temperature": _temperature(keys),
        "floor_scale": keys.count("floor_scale", default=8192),
        "experts": keys.take("num_local_experts", default=16),
        "experts_per_token": keys.take("num_experts_per_tok", default=1),
        **decoders.read_rope(keys, found["context"], base=5e5),
    }


def _temperature(keys: Keys) -> float | None:
    scale = keys.number("attn_scale", default=0.1)
    on = keys.take("attn_temperature_tuning", default=True)
    if not isinstance(on, int):  # an integer in older files
        raise UsageError(f"config.json has attn_temperature_tuning = {on!r}; it must be true or false")
    return scale if on else None


def config(c: Config) -> Json:
    """The config.json of a Config."""
    rope = [int(layer.kind == "rope") for layer in c.layers]
    return {
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        **decoders.gqa_keys(c),
        **decoders.rope_keys(c),
        "intermediate_size": c.expert_width,
        "intermediate_size_mlp": c.feed_forward,
        "attention_bias": c.attention_bias,
        "use_qk_norm": c.qk_norm,
        "attention_chunk_size": c.chunk,
        "no_rope_layers": rope,
        "layer_types": [decoders.LAYER_TYPES["chunked" if on and c.chunk else "full"] for on in rope],
        "moe_layers": [i for i, layer in enumerate(c.layers) if layer.stack == "moe"],
        "attn_temperature_tuning": c.attn_temperature is not None,
        "attn_scale": 0.1 if c.attn_temperature is None else c.attn_temperature,
        "floor_scale": c.floor_scale,
        "num_local_experts": c.experts,
        "num_experts_per_tok": c.experts_per_token,
        "router_jitter_noise": 0.0,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    E, D, F = c.experts, c.width, c.expert_width
    module = f"{decoders.LAYER}feed_forward"
    found = decoders.embed_and_head_rows(c)
    for stack, layers in decoders.layers_by_stack(c).items():
        at = f"blocks/{stack}"
        found += decoders.norm_rows(c, at, layers=layers)
        found += decoders.attention_rows(c, at, c.attention_bias, layers=layers)
        if stack == "dense":
            found += decoders.mlp_rows(D, c.feed_forward, at, "feed_forward", layers=layers)
            continue
        found.append(linear(f"{at}/router/kernel", f"{module}.router.weight", (D,), (E,), layers=layers))
        found += decoders.mlp_rows(D, F, f"{at}/shared", "feed_forward.shared_expert", layers=layers)
        found.append(same(f"{at}/experts/down/kernel", f"{module}.experts.down_proj", E, F, D, layers=layers))
        for i, name in enumerate(("gate", "up")):
            both = (E, D, 2 * F)
            half = (slice(None), slice(None), i)
            kernel = f"{at}/experts/{name}/kernel"
            tensor = f"{module}.experts.gate_up_proj"
            found.append(Row(kernel, tensor, (E, D, 2, F), (0, 1, 2), both, part=half, layers=layers))
    return found
