"""Gemma 2 and the language model of Gemma 3 on the Hugging Face hub."""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families import gemma4
from models.families.gemma import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row

TYPES = ("gemma2", "gemma3_text")
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
HARMLESS = ("cache_implementation", "hidden_act")  # the activation is hidden_activation


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    third = keys.require("model_type") == "gemma3_text"
    keys.require_value("use_bidirectional_attention", False, None)
    if third:
        keys.set_defaults(vocab_size=262208, hidden_size=2304, intermediate_size=9216)
        keys.set_defaults(num_hidden_layers=26, num_attention_heads=8)
    found = decoders.decoder_fields(keys, 131072 if third else 8192)
    depth = found["depth"]
    kinds = decoders.read_layer_types(keys, depth, ("full", "sliding"))
    keys.require_value("sliding_window_size", keys.get("sliding_window", 4096), None)  # a duplicate
    pattern = keys.count("sliding_window_pattern", "_sliding_window_pattern", default=6) if third else 2
    if kinds:
        found["sliding_layers"] = tuple(i for i, kind in enumerate(kinds) if kind == "sliding")
    found |= {
        "window": decoders.read_window(keys, kinds, 4096),
        "sliding_pattern": pattern,
        "kv_heads": keys.get("num_key_value_heads", 4),
        "head_dim": keys.take("head_dim", default=256),
        "activation": keys.activation("hidden_activation", default="gelu_pytorch_tanh"),
        "attention_bias": keys.take("attention_bias", default=False),
        "tied": keys.take("tie_word_embeddings", default=True),
        "query_pre_attn_scalar": float(keys.number("query_pre_attn_scalar", default=256)),
        "final_logit_softcap": keys.get("final_logit_softcapping", None if third else 30.0),
        "qk_norm": third,
    }
    attention_cap = keys.get("attn_logit_softcapping", None if third else 50.0)
    if not third:
        return {**found, "attn_logit_softcap": attention_cap, **decoders.read_rope(keys, found["context"])}
    return {**found, **_rope(keys, found["context"])}  # transformers never caps Gemma 3's scores


def _rope(keys: Keys, context: int) -> Fields:
    """Rotary positions of full and of sliding layers; newer files have both under `rope_parameters`."""
    both = keys.take("rope_parameters", default={}, kind=dict)
    inner = keys.nested(both)
    said = (inner.take(f"{kind}_attention", default={}, kind=dict) for kind in ("full", "sliding"))
    full, local = ({"rope_type": "default", **values} for values in said)
    full |= keys.take("rope_scaling", default={}, kind=dict)
    full.setdefault("rope_theta", keys.take("rope_theta", default=1e6))
    local.setdefault("rope_theta", keys.take("rope_local_base_freq", default=1e4))
    keys.take("rope_theta", "rope_local_base_freq")
    if strange := set(both) - {"full_attention", "sliding_attention"}:
        raise UsageError(f"config.json has rope_parameters of {', '.join(sorted(strange))}; there are no such layers")
    near = read_local_rope(keys, local, context)
    return {**near, **decoders.read_rope(keys.nested({"rope_parameters": full}), context)}


def read_local_rope(keys: Keys, local: Json, context: int) -> Fields:
    """The rotary base of sliding layers. Raises UsageError for a scaling of their positions."""
    found = decoders.read_rope(keys.nested({"rope_parameters": local}), context)
    if found["rope"] != "none":
        raise UsageError(f"config.json scales the rotary positions of sliding layers, {local}; this is not supported")
    return {"rope_local_base": found["rope_base"]}


def config(c: Config) -> Json:
    """The config.json of a Config, as Gemma 2's or 3's. Raises UsageError if neither can express it."""
    third = c.qk_norm
    if third and c.attn_logit_softcap is not None:
        raise UsageError(f"a published Gemma with qk_norm has no attn_logit_softcap, not {c.attn_logit_softcap}")
    if not third and c.rope_local_base is not None:
        raise UsageError(
            f"a published Gemma with rope_local_base = {c.rope_local_base} has norms on q and k: qk_norm = True"
        )
    if third and c.rope_local_base is None and c.rope != "none" and c.spans.keys() >= {"sliding"}:
        raise UsageError(
            f"a published Gemma with qk_norm does not scale the rotary positions of sliding layers: "
            f"give a rope_local_base beside rope = {c.rope!r}"
        )
    rope = decoders.rope_keys(c)
    if third:
        local = {"rope_type": "default", "rope_theta": c.rope_local_base or c.rope_base}
        rope["rope_parameters"] = {"full_attention": rope["rope_parameters"], "sliding_attention": local}
        rope["rope_local_base_freq"] = local["rope_theta"]
    query = c.query_pre_attn_scalar or c.head_width
    return {
        "model_type": "gemma3_text" if third else "gemma2",
        "architectures": ["Gemma3ForCausalLM" if third else "Gemma2ForCausalLM"],
        **shared_keys(c),
        **rope,
        **({} if third else {"attn_logit_softcapping": c.attn_logit_softcap}),
        "sliding_window": c.window or 4096,  # transformers requires it, with sliding layers or not
        **({"sliding_window_pattern": c.sliding_pattern} if third else {}),
        "query_pre_attn_scalar": int(query) if query == int(query) else query,
        "use_bidirectional_attention": False,
    }


def shared_keys(c: Config | gemma4.Config) -> Json:
    """The keys of config.json that all Gemmas have."""
    keys = decoders.gqa_keys(c)
    activation = keys.pop("hidden_act")
    return {
        **keys,
        "hidden_activation": "gelu_pytorch_tanh" if activation == "gelu_new" else activation,
        "attention_bias": c.attention_bias,
        "layer_types": [decoders.LAYER_TYPES[layer.kind] for layer in c.layers],
        "final_logit_softcapping": c.final_logit_softcap,
        "pad_token_id": None,
    }


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    return [
        *decoders.embed_and_head_rows(c),
        *decoders.norm_rows(c, "blocks", decoders.SANDWICH_NORMS),
        *decoders.attention_rows(c, "blocks", c.attention_bias, c.qk_norm),
        *decoders.mlp_rows(c.width, c.feed_forward, "blocks"),
    ]
