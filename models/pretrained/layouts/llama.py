"""Llama, Mistral and Qwen 3 on the Hugging Face hub: `model.layers.0.self_attn.q_proj.weight`, and so on."""

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.llama import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row

TYPES = ("llama", "mistral", "qwen3")
PREFIX, TIED, ignored_tensors = decoders.PREFIX, decoders.TIED, decoders.ignored_tensors
HARMLESS = ("pretraining_tp", "max_sequence_length")
CONTEXT = {"llama": 2048, "mistral": 131072, "qwen3": 32768}


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    kind = keys.require("model_type")
    keys.require_value("rope_interleaved", False, None)
    for name in {"llama": (), "mistral": ("attention_bias", "mlp_bias"), "qwen3": ("mlp_bias",)}[kind]:
        keys.require_value(name, False, None)  # transformers has no such biases for this model_type
    found = decoders.decoder_fields(keys, CONTEXT[kind])
    found |= {
        "kv_heads": keys.get("num_key_value_heads", {"llama": None, "mistral": 8, "qwen3": 32}[kind]),
        "head_dim": keys.take("head_dim", default=128 if kind == "qwen3" else None),
        "activation": keys.activation("hidden_act", default="silu"),
        "attention_bias": keys.take("attention_bias", default=False),
        "mlp_bias": keys.take("mlp_bias", default=False),
        "qk_norm": kind == "qwen3",
        **decoders.read_rope(keys, found["context"]),
    }
    if kind == "mistral":
        return {**found, "window": keys.get("sliding_window", 4096)}
    return {**found, **decoders.read_sliding(keys, found["depth"])} if kind == "qwen3" else found


def config(c: Config) -> Json:
    """The config.json of a Config, as Llama's, Mistral's or Qwen 3's. Raises UsageError if none can express it."""
    kinds = [layer.kind for layer in c.layers]
    slides = "sliding" in kinds
    kind = "qwen3" if c.qk_norm else "mistral" if slides else "llama"
    model = f"a published model with {'qk_norm' if c.qk_norm else 'a sliding window'}"
    if (c.attention_bias and kind == "mistral") or (c.mlp_bias and kind != "llama"):
        raise UsageError(f"{model} has no such biases: attention_bias = {c.attention_bias}, mlp_bias = {c.mlp_bias}")
    if kind == "mistral" and "full" in kinds:
        raise UsageError(f"{model} in some layers only, sliding_layers = {c.sliding_layers}, has qk_norm = True")
    found = {
        "model_type": kind,
        "architectures": [{"llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3"}[kind] + "ForCausalLM"],
        **decoders.gqa_keys(c),
        **decoders.rope_keys(c),
    }
    if kind != "mistral":
        found["attention_bias"] = c.attention_bias
    if kind == "llama":
        found["mlp_bias"] = c.mlp_bias
    if kind == "mistral":
        found["sliding_window"] = c.window
    return {**found, **decoders.sliding_keys(c)} if kind == "qwen3" else found


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    return [
        *decoders.embed_and_head_rows(c),
        *decoders.norm_rows(c, "blocks"),
        *decoders.attention_rows(c, "blocks", c.attention_bias, c.qk_norm),
        *decoders.mlp_rows(c.width, c.feed_forward, "blocks", bias=c.mlp_bias),
    ]
