"""What decoder layouts of the Hugging Face hub share: keys of config.json, read and written, and names of tensors.

Legend: V vocabulary, D width, N query heads, K key-value heads, H head width, F hidden, E experts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from documents import Json
from errors import UsageError
from models.blocks.decoder.config import Decoder, GQADecoder, SlidingWindowDecoder
from models.blocks.moe.moe import MoEDecoder
from models.core.types import Fields
from models.pretrained.config_keys import Keys, hf_activation
from models.pretrained.mapping import LayerNumbers, Row, affine, linear, same

PREFIX = "model."
TIED = {"lm_head.weight": "model.embed_tokens.weight"}
# Our names: those of the hub
LAYER_TYPES = {"full": "full_attention", "sliding": "sliding_attention", "chunked": "chunked_attention"}
PRE_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
SANDWICH_NORMS = {  # before and after each branch
    **{"norm1": "input_layernorm", "norm1_post": "post_attention_layernorm"},
    **{"norm2": "pre_feedforward_layernorm", "norm2_post": "post_feedforward_layernorm"},
}


def decoder_fields(keys: Keys, context: int) -> Fields:
    """Config fields of all decoders; `context` is the default in transformers."""
    return {
        "vocab": keys.require("vocab_size"),
        "context": keys.count("max_position_embeddings", default=context),
        "width": keys.require("hidden_size"),
        "depth": keys.count("num_hidden_layers"),
        "heads": keys.require("num_attention_heads"),
        "hidden": keys.require("intermediate_size"),
        "dropout": keys.take("attention_dropout", default=0.0),
        "tied": keys.take("tie_word_embeddings", default=False),
        "eps": keys.take("rms_norm_eps", default=1e-6),
    }


def read_layer_types(keys: Keys, depth: int, known: Sequence[str]) -> list[str] | None:
    """Our kinds of the layers from `layer_types`; None if absent. Raises UsageError for other kinds than `known`."""
    types = keys.take("layer_types", kind=list)
    if types is None:
        return None
    kinds = {LAYER_TYPES[kind]: kind for kind in known}
    if len(types) != depth or {str(name) for name in types} - set(kinds):
        raise UsageError(f"config.json: layer_types = {types} must have {depth} entries of {' or '.join(kinds)}")
    return [kinds[name] for name in types]


def read_window(keys: Keys, kinds: Sequence[str] | None, absent: int) -> Any:
    """The window of the sliding layers, as the file has it. Raises UsageError for sliding layers without a window."""
    window = keys.get("sliding_window", absent)
    if kinds and "sliding" in kinds and window is None:
        raise UsageError("config.json has layer_types with sliding_attention, but sliding_window is null")
    return window if not kinds or "sliding" in kinds else None


def read_sliding(keys: Keys, depth: int) -> Fields:
    """The window and the sliding layers: by `layer_types`, else those from `max_window_layers` on, as in Qwen."""
    on = keys.take("use_sliding_window", default=False, kind=bool)
    window = keys.get("sliding_window", 4096)
    first = keys.number("max_window_layers", default=28)
    kinds = read_layer_types(keys, depth, ("full", "sliding"))
    if not on or window is None:
        if kinds and "sliding" in kinds:
            raise UsageError("config.json has layer_types with sliding_attention, but use_sliding_window is not on")
        return {}
    slides = [i for i in range(depth) if (kinds[i] == "sliding" if kinds else i >= first)]
    return {"window": window, "sliding_layers": tuple(slides)}


def read_rope(
    keys: Keys, context: int, base: float = 10000.0, absent: Mapping[str, object] = MappingProxyType({})
) -> Fields:
    """Rotary frequencies: `rope_scaling` and `rope_theta`, or `rope_parameters` of newer files, as in transformers.

    `base` is the default of `rope_theta`; `absent` are the settings if neither of the other two is present.
    """
    older, newer = (keys.take(name, kind=dict) for name in ("rope_scaling", "rope_parameters"))
    values = absent if not older and newer is None else older or newer or {}
    keys.require_value("partial_rotary_factor", 1.0, 1, None)
    given = keys.nested({**values, "rope_theta": values.get("rope_theta", keys.take("rope_theta", default=base))})
    kind = given.take("rope_type", "type", default="default")
    found = {"rope": "none" if kind == "default" else kind, "rope_base": given.number("rope_theta")}
    given.require_value("partial_rotary_factor", 1.0, 1, None)
    given.take("finetuned")  # it does not affect the computation
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
            "rope_truncate": given.take("truncate", default=True),
        }
    elif kind != "default":
        raise UsageError(f"config.json has rope type {kind!r}; legal: default, linear, llama3, yarn")
    given.refuse_unread()
    return found


def _attention_factor(keys: Keys, factor: float) -> float:
    """`attention_factor`, else 0.1 ln(factor) + 1 (Peng et al. 2023, arXiv:2309.00071, eq. 22), or a ratio of two."""

    def of(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    one = keys.number("mscale", default=0)
    all_ = keys.number("mscale_all_dim", default=0)
    return keys.number("attention_factor", default=of(one) / of(all_) if one and all_ else of(1))


def rope_keys(c: Decoder) -> Json:
    """Keys of the rotary frequencies, in the older and the newer form."""
    kind = "default" if c.rope == "none" else c.rope
    found: Json = {"rope_type": kind}
    if kind != "default":
        found["factor"] = c.rope_factor
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = c.rope_context or c.context
    if kind == "llama3":
        found |= {"low_freq_factor": c.rope_low, "high_freq_factor": c.rope_high}
    if kind == "yarn":
        found |= {"beta_slow": c.rope_low, "beta_fast": c.rope_high, "truncate": c.rope_truncate}
        found["attention_factor"] = c.rope_scale
    old = {"rope_theta": c.rope_base, "rope_scaling": found if kind != "default" else None}
    return {"rope_parameters": {"rope_theta": c.rope_base, **found}, **old}


def decoder_keys(c: Decoder) -> Json:
    """The keys of config.json for the fields of a Decoder."""
    return {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.feed_forward,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "hidden_act": hf_activation(c.activation),
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "attention_dropout": c.dropout,
        "tie_word_embeddings": c.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def gqa_keys(c: GQADecoder) -> Json:
    """The keys of config.json for the fields of a GQADecoder."""
    return {**decoder_keys(c), "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_width}


def sliding_keys(c: SlidingWindowDecoder) -> Json:
    """The keys of config.json for sliding layers, as in Qwen."""
    kinds = [layer.kind for layer in c.layers]
    slides = "sliding" in kinds
    found = {"use_sliding_window": slides, "sliding_window": c.window if slides else None}
    return {**found, "layer_types": [LAYER_TYPES[kind] for kind in kinds], "max_window_layers": c.depth}


def read_aux_loss(keys: Keys) -> Fields:
    """The weight of the routers' auxiliary loss, which transformers adds only with `output_router_logits`."""
    weight = keys.take("router_aux_loss_coef", default=0.001)
    return {"aux_loss_weight": weight} if keys.take("output_router_logits", default=False, kind=bool) else {}


def aux_loss_keys(c: MoEDecoder) -> Json:
    """The keys of config.json for the routers' auxiliary loss."""
    return {"router_aux_loss_coef": c.aux_loss_weight, "output_router_logits": c.aux_loss_weight > 0}


# Rows


LAYER = f"{PREFIX}layers.{{}}."


def layers_by_stack(c: Decoder) -> dict[str, tuple[int, ...]]:
    """The layer numbers of each stack."""
    names = [layer.stack for layer in c.layers]
    return {stack: tuple(i for i, name in enumerate(names) if name == stack) for stack in dict.fromkeys(names)}


def ignored_tensors(c: Decoder, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the buffers of rotary frequencies."""
    return f"{PREFIX}layers.*.self_attn.rotary_emb.inv_freq", f"{PREFIX}rotary_emb.inv_freq"


def embed_and_head_rows(c: Decoder) -> list[Row]:
    """Token embedding, final norm, head."""
    found = [
        same("embed/token", f"{PREFIX}embed_tokens.weight", c.vocab, c.width),
        same("norm/scale", f"{PREFIX}norm.weight", c.width),
    ]
    return found if c.tied else [*found, same("head", "lm_head.weight", c.vocab, c.width)]


def norm_rows(c: Decoder, stack: str, names: Mapping[str, str] = PRE_NORMS, layers: LayerNumbers = None) -> list[Row]:
    """Norms of the residual stream in a stack; `names` maps ours to theirs."""
    return [
        same(f"{stack}/{ours}/scale", f"{LAYER}{theirs}.weight", c.width, layers=layers)
        for ours, theirs in names.items()
    ]


def attention_rows(
    c: GQADecoder, stack: str, bias: bool = False, norms: bool = False, layers: LayerNumbers = None
) -> list[Row]:
    """Grouped-query attention of a stack; `norms`: with norms of each head's queries and keys."""
    D, N, K, H = c.width, c.heads, c.num_kv_heads, c.head_width
    module = f"{LAYER}self_attn."
    found: list[Row] = []
    for name, inputs, outputs in (("q", (D,), (N, H)), ("k", (D,), (K, H)), ("v", (D,), (K, H)), ("out", (N, H), (D,))):
        found += affine(f"{stack}/{name}", f"{module}{name[0]}_proj", inputs, outputs, bias, layers=layers)
    return found + [
        same(f"{stack}/{n}_norm/scale", f"{module}{n}_norm.weight", H, layers=layers) for n in "qk" if norms
    ]


def mlp_rows(
    D: int, F: int, stack: str, module: str = "mlp", bias: bool = False, layers: LayerNumbers = None
) -> list[Row]:
    """A gated MLP of a stack; `module` is its name within a layer."""
    found: list[Row] = []
    for name, inputs, outputs in (("gate", D, F), ("up", D, F), ("down", F, D)):
        found += affine(f"{stack}/{name}", f"{LAYER}{module}.{name}_proj", (inputs,), (outputs,), bias, layers=layers)
    return found


def expert_rows(
    c: MoEDecoder,
    stack: str,
    module: str,
    names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    layers: LayerNumbers = None,
) -> list[Row]:
    """One tensor for each matrix of each expert; `names` are their names of gate, up and down."""
    found = []
    D, F = (c.width,), (c.expert_width,)
    for name, theirs, inputs, outputs in zip(("gate", "up", "down"), names, (D, D, F), (F, F, D), strict=True):
        kernel = f"{stack}/experts/{name}/kernel"
        tensor = f"{module}.experts.{{}}.{theirs}.weight"
        found.append(linear(kernel, tensor, inputs, outputs, layers=layers))
    return found
