"""DeepSeek V2 and V3 on the Hugging Face hub.

`kv_a_proj_with_mqa` projects to the latent and the rotary key, `kv_b_proj` from the latent to each head's keys and
values. V3's files have 8-bit weights, which `quantised` dequantises, and a multi-token prediction module after the last
layer. It is ignored, as in transformers, unless requested: load_pretrained(folder, mtp=1).
"""

from collections.abc import Iterable

from documents import Json
from errors import UsageError
from models.core.types import Fields
from models.families.deepseek import Config
from models.pretrained.config_keys import Keys
from models.pretrained.layouts import decoders
from models.pretrained.mapping import Row, affine, linear, same

TYPES = ("deepseek_v2", "deepseek_v3")
PREFIX, TIED = decoders.PREFIX, decoders.TIED
MODULES = 8  # the multi-token prediction modules to look for
HARMLESS = (
    *("pretraining_tp", "ep_size", "moe_layer_freq", "num_key_value_heads", "head_dim", "qk_head_dim", "seq_aux"),
    *("aux_loss_alpha", "mlp_bias", "output_router_logits", "num_nextn_predict_layers", "num_mtp_layers"),
)


def fields(keys: Keys) -> Fields:
    """Config fields from a config.json; absent keys have the defaults of transformers."""
    third = keys.require("model_type") == "deepseek_v3"
    heads = keys.take("num_attention_heads")
    keys.require_value("num_key_value_heads", heads, None)
    keys.require_value("moe_layer_freq", 1, None)
    keys.require_value("mlp_bias", False, None)
    keys.require_value("ep_size", 1, None)
    found = decoders.decoder_fields(keys, 4096 if third else 2048)
    older, newer = (keys.take(name, default={}, kind=dict) for name in ("rope_scaling", "rope_parameters"))
    dense = keys.take("first_k_dense_replace", default=3 if third else 0)
    if type(dense) is not int or dense < 0:
        raise UsageError(f"config.json has first_k_dense_replace = {dense!r}; it must be an integer of 0 or more")
    found |= {
        "activation": keys.activation("hidden_act", default="silu"),
        "attention_bias": keys.take("attention_bias", default=False),
        "q_rank": keys.get("q_lora_rank", 1536),
        "kv_rank": keys.take("kv_lora_rank", default=512),
        "nope_dim": keys.take("qk_nope_head_dim", default=128),
        "rope_dim": keys.take("qk_rope_head_dim", default=64),
        "value_dim": keys.take("v_head_dim", default=128),
        "mscale": keys.nested(older or newer).number("mscale_all_dim", default=0),
        "experts": keys.take("n_routed_experts", "num_experts", "num_local_experts", default=256 if third else 64),
        "shared": keys.take("n_shared_experts", default=1 if third else 2),
        "expert_hidden": keys.take("moe_intermediate_size", default=2048 if third else 1407),
        "dense_layers": tuple(range(min(dense, found["depth"]))),
        "routed_scaling_factor": float(keys.number("routed_scaling_factor", default=2.5 if third else 1.0)),
        **decoders.read_rope(keys, found["context"]),
    }
    groups = keys.take("n_group", default=8 if third else 1)
    kept = keys.take("topk_group", default=4 if third else 1)
    if third:
        keys.require_value("topk_method", "noaux_tc", None)
        keys.require_value("scoring_func", "sigmoid", None)
        return found | {
            "experts_per_token": keys.take("num_experts_per_tok", default=8),
            "rope_interleaved": keys.take("rope_interleave", default=True),
            "router": "sigmoid",
            "norm_topk": keys.take("norm_topk_prob", default=True),
            "expert_groups": groups,
            "topk_groups": kept,
        }
    keys.require_value("scoring_func", "softmax", None)
    keys.require_value("norm_topk_prob", False, None)  # the released code uses it, transformers does not
    method = keys.take("topk_method", default="greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise UsageError(f"config.json has topk_method = {method!r}; greedy and group_limited_greedy are supported")
    found["experts_per_token"] = keys.require("num_experts_per_tok")
    return found if method == "greedy" else found | {"expert_groups": groups, "topk_groups": kept}


def config(c: Config) -> Json:
    """The config.json of a Config, as V2's or V3's. Raises UsageError if neither can express it."""
    third = c.router == "sigmoid"
    if c.dense_layers != tuple(range(len(c.dense_layers))):
        raise UsageError(
            f"a published DeepSeek has its dense layers first; dense_layers = {c.dense_layers} has no config.json"
        )
    if not third and not c.rope_interleaved:
        raise UsageError(
            "a published DeepSeek with router='softmax' has interleaved rotary pairs: rope_interleaved = True"
        )
    if c.mtp and not third:
        raise UsageError(f"a published DeepSeek with router='softmax' has mtp = 0, not mtp = {c.mtp}")
    if not c.shared:
        raise UsageError("a published DeepSeek has shared experts, not shared = 0")
    if c.mscale and c.rope not in ("none", "yarn"):
        raise UsageError(f"a published DeepSeek with mscale = {c.mscale} has rope yarn, not {c.rope!r}")
    rope = decoders.rope_keys(c)
    for scaling in (rope["rope_parameters"], rope["rope_scaling"] or {}):
        scaling |= {"mscale_all_dim": c.mscale} if c.mscale and c.rope != "none" else {}
    more: Json = {"topk_method": "greedy" if c.expert_groups == 1 else "group_limited_greedy"}
    if third:
        more = {"rope_interleave": c.rope_interleaved, "norm_topk_prob": c.norm_topk, "num_nextn_predict_layers": c.mtp}
    return {
        "model_type": "deepseek_v3" if third else "deepseek_v2",
        "architectures": ["DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM"],
        **decoders.decoder_keys(c),
        **rope,
        **more,
        "num_key_value_heads": c.heads,
        "attention_bias": c.attention_bias,
        "q_lora_rank": c.q_rank,
        "kv_lora_rank": c.kv_rank,
        "qk_nope_head_dim": c.nope_dim,
        "qk_rope_head_dim": c.rope_dim,
        "v_head_dim": c.value_dim,
        "n_routed_experts": c.experts,
        "n_shared_experts": c.shared,
        "num_experts_per_tok": c.experts_per_token,
        "moe_intermediate_size": c.expert_width,
        "first_k_dense_replace": len(c.dense_layers),
        "routed_scaling_factor": c.routed_scaling_factor,
        "n_group": c.expert_groups,
        "topk_group": c.topk_groups,
    }


def ignored_tensors(c: Config, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns of the buffers of rotary frequencies, of further prediction modules, and of their copies of tables."""
    ends = {i: f"layers.{i}.eh_proj.weight" for i in range(c.depth + c.mtp, c.depth + MODULES)}
    modules = [i for i, end in ends.items() if any(name.endswith(end) for name in names)]  # without it, it is a layer
    return *decoders.ignored_tensors(c, names), *(f"{PREFIX}layers.{i}.*" for i in modules), *copies(c)


def copies(c: Config) -> dict[str, str]:
    """The token embedding and the head, of which each multi-token prediction module has copies."""
    at = [f"{PREFIX}layers.{c.depth + k}." for k in range(c.mtp)]
    table = f"{PREFIX}embed_tokens.weight"
    head = table if c.tied else "lm_head.weight"
    return {f"{i}embed_tokens.weight": table for i in at} | {f"{i}shared_head.head.weight": head for i in at}


def rows(c: Config) -> list[Row]:
    """The rows of the layout."""
    found = decoders.embed_and_head_rows(c)
    for stack, layers in decoders.layers_by_stack(c).items():
        found += _block(c, f"blocks/{stack}", stack, layers)
    if c.mtp:
        modules = tuple(range(c.depth, c.depth + c.mtp))
        norms = {"state_norm": "hnorm", "token_norm": "enorm", "norm": "shared_head.norm"}
        found += [*_block(c, "mtp/block", "moe", modules), *decoders.norm_rows(c, "mtp", norms, layers=modules)]
        both, halves = (c.width, 2 * c.width), (c.width, 2, c.width)
        there = f"{decoders.LAYER}eh_proj.weight"
        for i, name in enumerate(("token", "state")):
            part = (slice(None), i)
            found.append(Row(f"mtp/{name}/kernel", there, halves, (1, 0), both, part=part, layers=modules))
    return found


def _block(c: Config, at: str, stack: str, layers: tuple[int, ...]) -> list[Row]:
    D, N, H, W, R = c.width, c.heads, c.head_width, c.value_dim, c.kv_rank
    layer = decoders.LAYER
    module = f"{layer}self_attn."
    low = R + c.rope_dim
    h = c.nope_dim
    found = decoders.norm_rows(c, at, layers=layers)
    if c.q_rank:
        found += affine(f"{at}/q_down", f"{module}q_a_proj", (D,), (c.q_rank,), c.attention_bias, layers=layers)
        found.append(same(f"{at}/q_norm/scale", f"{module}q_a_layernorm.weight", c.q_rank, layers=layers))
        found.append(linear(f"{at}/q/kernel", f"{module}q_b_proj.weight", (c.q_rank,), (N, H), layers=layers))
    else:
        found.append(linear(f"{at}/q/kernel", f"{module}q_proj.weight", (D,), (N, H), layers=layers))
    both = f"{module}kv_a_proj_with_mqa"
    for name, rows_of in (("kv_down", slice(R)), ("k_rope", slice(R, None))):
        kernel, bias = f"{at}/{name}/kernel", f"{at}/{name}/bias"
        part = (rows_of,)
        found.append(Row(kernel, f"{both}.weight", (low, D), (1, 0), (low, D), part=part, layers=layers))
        if c.attention_bias:
            found.append(Row(bias, f"{both}.bias", (low,), (0,), (low,), part=part, layers=layers))
    found.append(same(f"{at}/kv_norm/scale", f"{module}kv_a_layernorm.weight", R, layers=layers))
    each, shape = (N, h + W, R), (N * (h + W), R)
    for name, columns in (("k", slice(h)), ("v", slice(h, None))):
        kernel = f"{at}/{name}/kernel"
        of_each = (slice(None), columns)
        found.append(Row(kernel, f"{module}kv_b_proj.weight", each, (2, 0, 1), shape, part=of_each, layers=layers))
    found += affine(f"{at}/out", f"{module}o_proj", (N, W), (D,), c.attention_bias, layers=layers)
    if stack == "dense":
        return found + decoders.mlp_rows(D, c.feed_forward, at, layers=layers)
    found.append(linear(f"{at}/router/kernel", f"{layer}mlp.gate.weight", (D,), (c.experts,), layers=layers))
    if c.router == "sigmoid":
        found.append(same(f"stats/{at}/bias", f"{layer}mlp.gate.e_score_correction_bias", c.experts, layers=layers))
    found += decoders.expert_rows(c, at, f"{layer}mlp", layers=layers)
    if c.shared:
        found += decoders.mlp_rows(D, c.shared * c.expert_width, f"{at}/shared", "mlp.shared_experts", layers=layers)
    return found
