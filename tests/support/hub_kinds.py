"""Random configs of the networks that the Hugging Face hub has, by `model_type`."""

from collections.abc import Callable
from typing import Any

import numpy as np


def gpt2(draw: np.random.Generator) -> dict[str, Any]:
    heads = int(draw.choice([1, 2, 4]))
    return dict(
        n_embd=heads * int(draw.choice([4, 6, 8])),
        n_head=heads,
        n_layer=int(draw.integers(1, 4)),
        n_inner=draw.choice([None, 20, 40]),
        activation_function=str(draw.choice(["gelu_new", "gelu", "relu"])),
        scale_attn_by_inverse_layer_idx=bool(draw.integers(2)),
        tie_word_embeddings=bool(draw.integers(2)),
        layer_norm_epsilon=float(draw.choice([1e-5, 1e-3])),
        n_positions=int(draw.integers(24, 40)),
        vocab_size=int(draw.integers(60, 200)),
    )


def rope(draw: np.random.Generator) -> dict[str, Any]:
    kind = str(draw.choice(["default", "linear", "llama3", "yarn"]))
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": float(draw.choice([1e4, 5e5, 1e3]))}
    if kind != "default":
        found["factor"] = float(draw.choice([2.0, 4.0, 8.0]))
    if kind in ("llama3", "yarn"):
        found["original_max_position_embeddings"] = int(draw.choice([16, 64]))
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": float(draw.choice([2.0, 4.0]))}
    if kind == "yarn" and draw.integers(2):
        found |= {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": bool(draw.integers(2))}
    if kind == "yarn" and draw.integers(2):
        found |= {"mscale": 0.7, "mscale_all_dim": 1.3} if draw.integers(2) else {"attention_factor": 1.2}
    return found


def llama(draw: np.random.Generator) -> dict[str, Any]:
    groups, each = int(draw.choice([1, 2])), int(draw.choice([1, 2, 4]))
    return dict(
        hidden_size=groups * each * 8,
        num_attention_heads=groups * each,
        num_key_value_heads=groups,
        num_hidden_layers=int(draw.integers(1, 4)),
        intermediate_size=int(draw.choice([20, 36])),
        head_dim=int(draw.choice([8, 16])),
        hidden_act=str(draw.choice(["silu", "gelu", "gelu_pytorch_tanh"])),
        rms_norm_eps=float(draw.choice([1e-6, 1e-3])),
        max_position_embeddings=512,
        tie_word_embeddings=bool(draw.integers(2)),
        vocab_size=int(draw.integers(60, 200)),
        rope_parameters=rope(draw),
        attention_bias=bool(draw.integers(2)),
        mlp_bias=bool(draw.integers(2)),
    )


def mistral(draw: np.random.Generator) -> dict[str, Any]:
    found = llama(draw) | {"sliding_window": draw.choice([None, 5, 9])}
    return {k: v for k, v in found.items() if not k.endswith("_bias")}


def qwen3(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in llama(draw).items() if k != "mlp_bias"}
    first = int(draw.integers(0, found["num_hidden_layers"] + 1))
    return found | dict(use_sliding_window=bool(draw.integers(2)), sliding_window=5, max_window_layers=first)


def mixtral(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in llama(draw).items() if not k.endswith("_bias")}
    experts = int(draw.choice([2, 4, 5]))
    return found | dict(
        sliding_window=draw.choice([None, 5]),
        num_local_experts=experts,
        num_experts_per_tok=int(draw.integers(1, min(experts, 3) + 1)),
        output_router_logits=bool(draw.integers(2)),
        router_aux_loss_coef=float(draw.choice([0.02, 0.5])),
    )


def qwen3_moe(draw: np.random.Generator) -> dict[str, Any]:
    found = mixtral(draw) | dict(
        num_hidden_layers=int(draw.integers(2, 5)),
        attention_bias=bool(draw.integers(2)),
        moe_intermediate_size=int(draw.choice([12, 20])),
        norm_topk_prob=bool(draw.integers(2)),
        decoder_sparse_step=int(draw.choice([1, 2])),
        mlp_only_layers=[[], [0]][int(draw.integers(2))],
        use_sliding_window=bool(draw.integers(2)),
        sliding_window=5,
    )
    return {"num_experts" if k == "num_local_experts" else k: v for k, v in found.items()}


def gpt_oss(draw: np.random.Generator) -> dict[str, Any]:
    found = mixtral(draw) | dict(
        attention_bias=bool(draw.integers(2)),
        sliding_window=int(draw.choice([3, 5])),
        swiglu_limit=float(draw.choice([7.0, 0.5])),
        swiglu_alpha=float(draw.choice([1.702, 1.1])),
    )
    kinds = draw.choice(["sliding_attention", "full_attention"], found["num_hidden_layers"])
    return found | {"layer_types": [None, kinds.tolist()][int(draw.integers(2))]}


def deepseek_v2(draw: np.random.Generator) -> dict[str, Any]:
    base, groups = llama(draw), int(draw.choice([1, 2, 3]))
    kept = int(draw.integers(1, groups + 1))
    scaling = rope(draw)
    if scaling["rope_type"] == "yarn":
        scaling.pop("attention_factor", None)
        scaling |= [{}, {"mscale": 0.7, "mscale_all_dim": 0.7}, {"mscale_all_dim": 0.9}][int(draw.integers(3))]
    return {k: v for k, v in base.items() if k not in ("head_dim", "mlp_bias")} | dict(
        num_key_value_heads=base["num_attention_heads"],
        rope_parameters=scaling,
        num_hidden_layers=int(draw.integers(1, 4)),
        q_lora_rank=draw.choice([None, 12]),
        kv_lora_rank=int(draw.choice([8, 20])),
        qk_nope_head_dim=int(draw.choice([4, 8])),
        qk_rope_head_dim=int(draw.choice([4, 8])),
        v_head_dim=int(draw.choice([4, 12])),
        n_routed_experts=groups * 3,
        n_shared_experts=int(draw.integers(1, 3)),
        num_experts_per_tok=int(draw.integers(1, 3 * kept + 1)),
        moe_intermediate_size=int(draw.choice([8, 20])),
        first_k_dense_replace=int(draw.integers(0, 3)),
        routed_scaling_factor=float(draw.choice([1.0, 2.5])),
        n_group=groups,
        topk_group=kept,
        topk_method=str(draw.choice(["greedy", "group_limited_greedy"])),
    )


def deepseek_v3(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in deepseek_v2(draw).items() if k != "topk_method"}
    return found | dict(norm_topk_prob=bool(draw.integers(2)), rope_interleave=bool(draw.integers(2)))


def llama4_text(draw: np.random.Generator) -> dict[str, Any]:
    base = llama(draw)
    experts, step = int(draw.choice([2, 4])), int(draw.choice([1, 2]))
    more = dict(moe_layers=[[0], []][int(draw.integers(2))]) if draw.integers(2) else {}
    return (
        {k: v for k, v in base.items() if k != "mlp_bias"}
        | more
        | dict(
            num_hidden_layers=int(draw.integers(2, 6)),
            intermediate_size_mlp=int(draw.choice([20, 28])),
            num_local_experts=experts,
            num_experts_per_tok=int(draw.integers(1, 3)),
            interleave_moe_layer_step=step,
            no_rope_layer_interval=int(draw.choice([2, 4])),
            attention_chunk_size=int(draw.choice([4, 6])),
            use_qk_norm=bool(draw.integers(2)),
            attn_temperature_tuning=bool(draw.integers(2)),
            floor_scale=int(draw.choice([3, 8])),
            attn_scale=float(draw.choice([0.1, 0.5])),
        )
    )


def gemma2(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in llama(draw).items() if k not in ("mlp_bias", "hidden_act")}
    found |= dict(
        hidden_activation=str(draw.choice(["gelu_pytorch_tanh", "silu"])),
        sliding_window=int(draw.choice([3, 5])),
        query_pre_attn_scalar=int(draw.choice([8, 20])),
        attn_logit_softcapping=draw.choice([None, 2.0, 50.0]),
        final_logit_softcapping=draw.choice([None, 3.0, 30.0]),
        pad_token_id=None,  # torch gives the row of padding no gradient
    )
    kinds = draw.choice(["sliding_attention", "full_attention"], found["num_hidden_layers"])
    return found | {"layer_types": [None, kinds.tolist()][int(draw.integers(2))]}


def gemma3_text(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in gemma2(draw).items() if k != "attn_logit_softcapping"}
    turns = found.pop("rope_parameters")
    local = {"rope_type": "default", "rope_theta": float(draw.choice([1e3, 1e4]))}
    found |= dict(rope_parameters={"full_attention": turns, "sliding_attention": local})
    return found | dict(num_hidden_layers=int(draw.integers(1, 8)), layer_types=None)


def gemma4_text(draw: np.random.Generator) -> dict[str, Any]:
    found = {k: v for k, v in gemma2(draw).items() if k not in ("attn_logit_softcapping", "query_pre_attn_scalar")}
    experts, heads = int(draw.choice([3, 4])), found["num_attention_heads"]
    share = dict(rope_type="proportional", partial_rotary_factor=float(draw.choice([0.25, 0.5, 1.0])), rope_theta=1e5)
    turns = [share | {"factor": 2.0}, share, dict(rope_type="linear", factor=4.0, rope_theta=1e4)]
    local = {"rope_type": "default", "rope_theta": float(draw.choice([1e3, 1e4]))}
    kinds = [*draw.choice(["sliding_attention", "full_attention"], found["num_hidden_layers"] + 1), "full_attention"]
    return found | dict(
        num_hidden_layers=len(kinds),
        layer_types=[None, [str(kind) for kind in kinds]][int(draw.integers(2))],
        global_head_dim=int(draw.choice([8, 24])),
        num_global_key_value_heads=[None, 1, heads][int(draw.integers(3))],
        attention_k_eq_v=bool(draw.integers(2)),
        rope_parameters={"full_attention": turns[int(draw.integers(3))], "sliding_attention": local},
        hidden_size_per_layer_input=0,
        enable_moe_block=bool(draw.integers(2)),
        num_experts=experts,
        top_k_experts=int(draw.integers(1, experts + 1)),
        moe_intermediate_size=int(draw.choice([12, 20])),
    )


KINDS: dict[str, tuple[str, Callable[[np.random.Generator], dict[str, Any]]]] = {  # -> class, its random config
    "gpt2": ("GPT2LMHeadModel", gpt2),
    "llama": ("LlamaForCausalLM", llama),
    "mistral": ("MistralForCausalLM", mistral),
    "qwen3": ("Qwen3ForCausalLM", qwen3),
    "mixtral": ("MixtralForCausalLM", mixtral),
    "deepseek_v2": ("DeepseekV2ForCausalLM", deepseek_v2),
    "deepseek_v3": ("DeepseekV3ForCausalLM", deepseek_v3),
    "llama4_text": ("Llama4ForCausalLM", llama4_text),
    "gemma2": ("Gemma2ForCausalLM", gemma2),
    "gemma3_text": ("Gemma3ForCausalLM", gemma3_text),
    "gemma4_text": ("Gemma4ForCausalLM", gemma4_text),
    "gpt_oss": ("GptOssForCausalLM", gpt_oss),
    "qwen3_moe": ("Qwen3MoeForCausalLM", qwen3_moe),
}

# Configs that hold every value of every choice above (test_hub.py sees to it); of layers that may differ the first has
# two sorts.
SEEDS: dict[str, tuple[int, int, int]] = {
    "gpt2": (1, 27, 2076),
    "llama": (1, 2, 97),
    "mistral": (1, 28, 356),
    "qwen3": (4, 8, 1145),
    "mixtral": (1, 201, 663),
    "deepseek_v2": (28, 552, 2234),
    "deepseek_v3": (131, 1630, 1440),
    "llama4_text": (2, 1391, 1470),
    "gemma2": (1, 75, 838),
    "gemma3_text": (0, 545, 420),
    "gemma4_text": (35, 100, 1506),
    "gpt_oss": (4, 34, 2107),
    "qwen3_moe": (1, 168, 1535),
}
