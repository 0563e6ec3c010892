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
        num_hidden_layers=int(draw.integers(1, 5)),
        attention_bias=bool(draw.integers(2)),
        moe_intermediate_size=int(draw.choice([12, 20])),
        norm_topk_prob=bool(draw.integers(2)),
        decoder_sparse_step=int(draw.choice([1, 2])),
        mlp_only_layers=[[], [0]][int(draw.integers(2))],
        use_sliding_window=bool(draw.integers(2)),
        sliding_window=5,
    )
    return {"num_experts" if k == "num_local_experts" else k: v for k, v in found.items()}


KINDS: dict[str, tuple[str, Callable[[np.random.Generator], dict[str, Any]]]] = {  # -> class, its random config
    "gpt2": ("GPT2LMHeadModel", gpt2),
    "llama": ("LlamaForCausalLM", llama),
    "mistral": ("MistralForCausalLM", mistral),
    "qwen3": ("Qwen3ForCausalLM", qwen3),
    "mixtral": ("MixtralForCausalLM", mixtral),
    "qwen3_moe": ("Qwen3MoeForCausalLM", qwen3_moe),
}
