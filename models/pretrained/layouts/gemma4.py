"""Gemma 4's language model on the Hugging Face hub: all experts of a layer in one tensor, gate before up."""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.gemma4 import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders, gemma
from models.pretrained.mapping import Row, linear, same

TYPES = ("gemma4_text", "gemma4_unified_text")
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
HARMLESS = tuple(
    "cache_implementation hidden_act vocab_size_per_layer_input use_double_wide_mlp output_router_logits".split()
)
ROUTED_NORMS = {
    **{"mlp_post": "post_feedforward_layernorm_1", "experts_norm": "pre_feedforward_layernorm_2"},
    "experts_post": "post_feedforward_layernorm_2",
}


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    unified = keys.require("model_type") == "gemma4_unified_text"
    keys.set_defaults(vocab_size=262144, num_attention_heads=8, hidden_size=2304, intermediate_size=9216)
    keys.set_defaults(hidden_size_per_layer_input=0 if unified else 256)
    keys.require_value("hidden_size_per_layer_input", 0, None)
    keys.require_value("num_kv_shared_layers", 0, None)
    keys.require_value("use_bidirectional_attention", None, False, "vision")  # vision: of image tokens only
    found = decoders.decoder_fields(keys, 262144 if unified else 131072)
    depth = found["depth"]
    kinds = decoders.read_layer_types(keys, depth, ("full", "sliding")) or []
    slides = [i for i in range(depth - 1) if (kinds[i] == "sliding" if kinds else (i + 1) % 6)]
    window = keys.get("sliding_window", 1024 if unified else 512)
    same_kv = keys.take("attention_k_eq_v", default=False, kind=bool)
    return {
        **found,
        **_full_heads(keys, same_kv, [i for i in range(depth) if i not in slides]),
        **_rope(keys, found["context"]),
        **_experts(keys),
        "window": window if slides else None,
        "sliding_layers": tuple(slides),
        "kv_heads": keys.get("num_key_value_heads", 4),
        "head_dim": keys.take("head_dim", default=256),
        "k_eq_v": same_kv,
        "activation": keys.activation("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_bias": keys.take("attention_bias", default=False),
        "tied": keys.take("tie_word_embeddings", default=True),
        "final_logit_softcap": keys.get("final_logit_softcapping", None),
    }


def _full_heads(keys: Keys, same_kv: bool, full: list[int]) -> Fields:
    """The heads of full layers: by layer in newer files, where they must be equal; keys of their own in older ones."""
    wide = keys.take("global_head_dim", default=512)
    groups = keys.take("num_global_key_value_heads")
    by_layer = keys.take("per_layer_config", kind=dict)
    if by_layer is None:
        return {"full_head_dim": wide, "full_kv_heads": groups if same_kv else None}
    settings = [by_layer.get(str(i), {}) for i in full]
    equal = all(one == settings[0] for one in settings) and isinstance(settings[0], dict)
    if set(by_layer) - set(map(str, full)) or not equal or set(settings[0]) - {"head_dim", "num_key_value_heads"}:
        raise UsageError(
            f"config.json has per_layer_config = {by_layer}; only head_dim and num_key_value_heads are supported, with "
            f"equal values in all full layers: {full}"
        )
    return {"full_head_dim": settings[0].get("head_dim"), "full_kv_heads": settings[0].get("num_key_value_heads")}


def _rope(keys: Keys, context: int) -> Fields:
    """Rotary positions of full layers, with their share of rotated pairs, and of sliding layers."""
    both = keys.take("rope_parameters", default={}, kind=dict)
    proportional = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    usual = {"full": proportional, "sliding": {"rope_type": "default", "rope_theta": 1e4}}
    each = keys.nested(both)
    said = (each.take(decoders.LAYER_TYPES[kind], default=usual[kind], kind=dict) for kind in ("full", "sliding"))
    full, local = ({"rope_type": "default", **values} for values in said)
    if strange := {k for k, v in both.items() if v is not None and k not in decoders.LAYER_TYPES.values()}:
        raise UsageError(f"config.json has rope_parameters of {', '.join(sorted(strange))}; there are no such layers")
    near = gemma.read_local_rope(keys, local, context)
    rotary_factor = 1.0
    if full["rope_type"] == "proportional":
        inner = keys.nested(full)
        rotary_factor = inner.number("partial_rotary_factor", default=1)
        factor, base = inner.number("factor", default=1), inner.number("rope_theta")
        inner.take("rope_type")
        inner.refuse_unread()
        full = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
        full["rope_theta"] = base
    far = decoders.read_rope(keys.nested({"rope_parameters": full}), context)
    return {**far, **near, "partial_rotary_factor": rotary_factor}


def _experts(keys: Keys) -> Fields:
    routed = keys.take("enable_moe_block", default=False, kind=bool)
    names = {"experts": "num_experts", "experts_per_token": "top_k_experts", "expert_hidden": "moe_intermediate_size"}
    found = {ours: keys.require(theirs) if routed else keys.take(theirs) for ours, theirs in names.items()}
    return {"enable_moe_block": True, **found} if routed else {}


def config(c: Config) -> Json:
    """The config.json of a Config. Raises UsageError for a last layer that slides, and for other rope scalings."""
    kinds = [layer.kind for layer in c.layers]
    if kinds[-1] != "full":
        raise UsageError(f"the last layer of a published Gemma 4 is a full layer; sliding_layers = {c.sliding_layers}")
    if c.rope not in ("none", "linear"):
        raise UsageError(f"a published Gemma 4 has rope none or linear, not {c.rope!r}")
    factor = {} if c.rope == "none" else {"factor": c.rope_factor}
    full = {
        "rope_type": "proportional",
        "partial_rotary_factor": c.partial_rotary_factor,
        "rope_theta": c.rope_base,
        **factor,
    }
    wide = c.for_kind("full")
    over = {"head_dim": c.full_head_dim, "num_key_value_heads": c.full_kv_heads}
    over = {name: n for name, n in over.items() if n is not None}
    return {
        "model_type": "gemma4_text",
        "architectures": ["Gemma4ForCausalLM"],
        **gemma.shared_keys(c),
        "attention_k_eq_v": c.k_eq_v,
        "global_head_dim": wide.head_width,
        "num_global_key_value_heads": c.full_kv_heads,
        "per_layer_config": {str(i): over for i, kind in enumerate(kinds) if kind == "full"},
        "sliding_window": c.window or 512,  # transformers requires it, with sliding layers or not
        "rope_parameters": {
            decoders.LAYER_TYPES["full"]: full,
            decoders.LAYER_TYPES["sliding"]: {"rope_type": "default", "rope_theta": c.rope_local_base},
        },
        "enable_moe_block": c.enable_moe_block,
        "num_experts": c.experts if c.enable_moe_block else None,
        "top_k_experts": c.experts_per_token if c.enable_moe_block else None,
        "moe_intermediate_size": c.expert_width if c.enable_moe_block else None,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    D, E, F = c.width, c.experts, c.expert_width
    layer = decoders.LAYER
    found = decoders.embed_and_head_rows(c)
    for stack, layers in decoders.layers_by_stack(c).items():
        at = f"blocks/{stack}"
        found += decoders.norm_rows(c, at, decoders.SANDWICH_NORMS, layers=layers)
        heads = decoders.attention_rows(c.for_kind(stack), at, c.attention_bias, norms=True, layers=layers)
        alone = c.k_eq_v and stack == "full"
        found += [row for row in heads if not (alone and row.path.startswith(f"{at}/v/"))]
        found += decoders.mlp_rows(D, c.feed_forward, at, layers=layers)
        found.append(Row(f"stats/{at}/factor", f"{layer}layer_scalar", (1,), (), (1,), part=(0,), layers=layers))
        if not c.enable_moe_block:
            continue
        found += decoders.norm_rows(c, at, ROUTED_NORMS, layers=layers)
        found.append(linear(f"{at}/router/kernel", f"{layer}router.proj.weight", (D,), (E,), layers=layers))
        found.append(same(f"{at}/router/scale", f"{layer}router.scale", D, layers=layers))
        found.append(same(f"{at}/router/gain", f"{layer}router.per_expert_scale", E, layers=layers))
        down = f"{at}/experts/down/kernel", f"{layer}experts.down_proj"
        found.append(Row(*down, (E, D, F), (0, 2, 1), (E, D, F), layers=layers))
        for i, name in enumerate(("gate", "up")):
            kernel = f"{at}/experts/{name}/kernel"
            tensor = f"{layer}experts.gate_up_proj"
            half = (slice(None), i)
            found.append(Row(kernel, tensor, (E, 2, F, D), (0, 2, 1), (E, 2 * F, D), part=half, layers=layers))
    return found
