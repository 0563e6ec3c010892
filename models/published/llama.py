"""Llama, Mistral and Qwen 3 as the Hugging Face hub has them: `model.layers.0.self_attn.q_proj.weight`, and so on."""

import math
from typing import Any

from errors import UsageError
from models.llama import Config
from models.published.layout import Keys, Row, affine, same, their_activation

TYPES = ("llama", "mistral", "qwen3")
PREFIX = "model."
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
HARMLESS = ("pretraining_tp", "max_sequence_length")
EPS = 1e-6  # of a config.json that has none
CONTEXT = {"llama": 2048, "mistral": 131072, "qwen3": 32768}


def fields(keys: Keys) -> dict[str, Any]:
    """Fields of a Config from a config.json; what its absent keys mean is as in transformers' configs."""
    kind, depth = keys.need("model_type"), keys.need("num_hidden_layers")
    keys.hold("rope_interleaved", False, None)
    for name in {"llama": (), "mistral": ("attention_bias", "mlp_bias"), "qwen3": ("mlp_bias",)}[kind]:
        keys.hold(name, False, None)  # transformers has no such biases there
    context = int(keys.number("max_position_embeddings", default=CONTEXT[kind]))
    found = {
        "vocab": keys.need("vocab_size"),
        "context": context,
        "width": keys.need("hidden_size"),
        "depth": depth,
        "heads": keys.need("num_attention_heads"),
        "kv_heads": keys.given("num_key_value_heads", {"llama": None, "mistral": 8, "qwen3": 32}[kind]),
        "head_dim": keys.take("head_dim", default=128 if kind == "qwen3" else None),
        "hidden": keys.need("intermediate_size"),
        "activation": keys.activation("hidden_act", default="silu"),
        "attention_bias": keys.take("attention_bias", default=False),
        "mlp_bias": keys.take("mlp_bias", default=False),
        "qk_norm": kind == "qwen3",
        "dropout": keys.take("attention_dropout", default=0.0),
        "tied": keys.take("tie_word_embeddings", default=False),
        "eps": keys.take("rms_norm_eps", default=EPS),
        **_rope(keys, context),
    }
    if kind == "mistral":
        return {**found, "window": keys.given("sliding_window", 4096)}
    return {**found, **_sliding(keys, depth)} if kind == "qwen3" else found


def _sliding(keys: Keys, depth: int) -> dict[str, Any]:
    """Which of Qwen's layers slide: those that `layer_types` names so, else those from `max_window_layers` on."""
    on, window = keys.take("use_sliding_window", default=False, kind=bool), keys.given("sliding_window", 4096)
    first, kinds = keys.number("max_window_layers", default=28), keys.take("layer_types", kind=list)
    if not on or window is None:
        if kinds and "sliding_attention" in kinds:
            raise UsageError("config.json has layer_types with sliding_attention, but use_sliding_window is not on")
        return {}
    if kinds is not None and (len(kinds) != depth or set(kinds) - {"full_attention", "sliding_attention"}):
        raise UsageError(
            f"config.json: layer_types = {kinds} must name full_attention or sliding_attention {depth} times"
        )
    slides = [i for i in range(depth) if (kinds[i] == "sliding_attention" if kinds else i >= first)]
    return {"window": window, "sliding": tuple(slides)}


def _rope(keys: Keys, context: int) -> dict[str, Any]:
    """Rotary frequencies: `rope_scaling` and `rope_theta`, else newer files' `rope_parameters`, as in transformers."""
    older, newer = (keys.take(name, default={}, kind=dict) for name in ("rope_scaling", "rope_parameters"))
    values = older or newer
    keys.hold("partial_rotary_factor", 1.0, 1, None)
    given = keys.inner({**values, "rope_theta": values.get("rope_theta", keys.take("rope_theta", default=10000.0))})
    kind = given.take("rope_type", "type", default="default")
    found = {"rope": "none" if kind == "default" else kind, "rope_base": given.number("rope_theta")}
    given.hold("partial_rotary_factor", 1.0, 1, None)
    given.take("finetuned")  # tells how, not what
    trained = given.number("original_max_position_embeddings", default=context)
    trained = keys.number("original_max_position_embeddings", default=trained)
    if kind == "linear":
        found["rope_factor"] = given.number("factor")
    elif kind == "llama3":
        found |= {"rope_factor": given.number("factor"), "rope_context": int(trained)}
        found |= {"rope_low": given.number("low_freq_factor"), "rope_high": given.number("high_freq_factor")}
    elif kind == "yarn":
        factor = given.number("factor", default=context / (trained or 1))
        found |= {"rope_factor": factor, "rope_context": int(trained), "rope_scale": _attention_factor(given, factor)}
        found |= {
            "rope_low": given.number("beta_slow", default=1),
            "rope_high": given.number("beta_fast", default=32),
            "rope_whole": given.take("truncate", default=True),
        }
    elif kind != "default":
        raise UsageError(f"config.json has rope type {kind!r}; default, linear, llama3 and yarn are known here")
    given.done()
    return found


def _attention_factor(keys: Keys, factor: float) -> float:
    """As given, else 0.1 ln(factor) + 1 (Peng et al. 2023, arXiv:2309.00071, eq. 22), or a ratio of two such."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    one, all_ = keys.number("mscale", default=0), keys.number("mscale_all_dim", default=0)
    return keys.number("attention_factor", default=of(one) / of(all_) if one and all_ else of(1))


def config(c: Config) -> dict[str, Any]:
    """A config.json of a Config, as Llama's, Mistral's or Qwen 3's. Raises UsageError for what none of them has."""
    kinds = [layer.kind for layer in c.layers]
    slides = "sliding" in kinds
    kind = "qwen3" if c.qk_norm else "mistral" if slides else "llama"
    where = f"a published network with {'norms on q and k' if c.qk_norm else 'a sliding window'}"
    if (c.attention_bias and kind == "mistral") or (c.mlp_bias and kind != "llama"):
        raise UsageError(f"{where} has no such biases: attention_bias = {c.attention_bias}, mlp_bias = {c.mlp_bias}")
    if kind == "mistral" and "full" in kinds:
        raise UsageError(
            f"{where} in some layers only, sliding = {c.sliding}, has norms on q and k too: qk_norm = True"
        )
    found = {
        "model_type": kind,
        "architectures": [{"llama": "Llama", "mistral": "Mistral", "qwen3": "Qwen3"}[kind] + "ForCausalLM"],
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.feed_forward,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.groups,
        "head_dim": c.head_width,
        "hidden_act": their_activation(c.activation),
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "attention_dropout": c.dropout,
        "tie_word_embeddings": c.tied,
        "bos_token_id": None,
        "eos_token_id": None,
        **_their_rope(c),
    }
    if kind != "mistral":
        found["attention_bias"] = c.attention_bias
    if kind == "llama":
        found["mlp_bias"] = c.mlp_bias
    if kind == "mistral":
        found["sliding_window"] = c.window
    if kind == "qwen3":
        names = {"full": "full_attention", "sliding": "sliding_attention"}
        found |= {"use_sliding_window": slides, "sliding_window": c.window if slides else None}
        found |= {"layer_types": [names[k] for k in kinds], "max_window_layers": c.depth}
    return found


def _their_rope(c: Config) -> dict[str, Any]:
    """Both spellings, so that older readers find theirs."""
    kind = "default" if c.rope == "none" else c.rope
    found: dict[str, Any] = {"rope_type": kind}
    if kind != "default":
        found["factor"] = c.rope_factor
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = c.rope_context or c.context
    if kind == "llama3":
        found |= {"low_freq_factor": c.rope_low, "high_freq_factor": c.rope_high}
    if kind == "yarn":
        found |= {"beta_slow": c.rope_low, "beta_fast": c.rope_high, "truncate": c.rope_whole}
        found["attention_factor"] = c.rope_scale
    old = {"rope_theta": c.rope_base, "rope_scaling": found if kind != "default" else None}
    return {"rope_parameters": {"rope_theta": c.rope_base, **found}, **old}


def ignored(c: Config) -> tuple[str, ...]:
    """Buffers of rotary frequencies."""
    return f"{PREFIX}layers.*.self_attn.rotary_emb.inv_freq", f"{PREFIX}rotary_emb.inv_freq"


def rows(c: Config) -> list[Row]:
    """The layout."""
    V, D, N, K, H, F = c.vocab, c.width, c.heads, c.groups, c.head_width, c.feed_forward
    top, layer = PREFIX, f"{PREFIX}layers.{{}}."
    found = [
        same("embed/token", f"{top}embed_tokens.weight", V, D),
        same("norm/scale", f"{top}norm.weight", D),
        same("blocks/norm1/scale", f"{layer}input_layernorm.weight", D),
        same("blocks/norm2/scale", f"{layer}post_attention_layernorm.weight", D),
    ]
    for name, inputs, outputs, biased in (
        ("q", (D,), (N, H), c.attention_bias),
        ("k", (D,), (K, H), c.attention_bias),
        ("v", (D,), (K, H), c.attention_bias),
        ("out", (N, H), (D,), c.attention_bias),
        ("gate", (D,), (F,), c.mlp_bias),
        ("up", (D,), (F,), c.mlp_bias),
        ("down", (F,), (D,), c.mlp_bias),
    ):
        there = f"{layer}mlp.{name}_proj" if name in ("gate", "up", "down") else f"{layer}self_attn.{name[0]}_proj"
        found += affine(f"blocks/{name}", there, inputs, outputs, biased)
    if c.qk_norm:
        found += [same(f"blocks/{n}_norm/scale", f"{layer}self_attn.{n}_norm.weight", H) for n in "qk"]
    return found if c.tied else [*found, same("head", "lm_head.weight", V, D)]
