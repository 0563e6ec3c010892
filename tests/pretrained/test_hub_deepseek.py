"""DeepSeek's folders of the hub: what config.json says, weights of 8 bits, modules that predict further tokens."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from models.pretrained.config_keys import Keys
from models.pretrained.formats.safetensors import TensorReader
from models.pretrained.layouts import deepseek
from tests.support.hub import assert_close, reference, torch

YARN = dict(beta_fast=32, beta_slow=1, factor=40, original_max_position_embeddings=4096, type="yarn")
V2 = dict(
    **dict(architectures=["DeepseekV2ForCausalLM"], attention_bias=False, attention_dropout=0.0, aux_loss_alpha=0.001),
    **dict(bos_token_id=100000, eos_token_id=100001, first_k_dense_replace=1, hidden_act="silu", kv_lora_rank=512),
    **dict(initializer_range=0.02, max_position_embeddings=163840, model_type="deepseek_v2", moe_layer_freq=1),
    **dict(n_shared_experts=2, norm_topk_prob=False, num_experts_per_tok=6, pretraining_tp=1, qk_nope_head_dim=128),
    **dict(qk_rope_head_dim=64, rms_norm_eps=1e-06, rope_theta=10000, scoring_func="softmax", seq_aux=True),
    **dict(rope_scaling={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, tie_word_embeddings=False),
    **dict(torch_dtype="bfloat16", transformers_version="4.33.1", use_cache=True, v_head_dim=128, vocab_size=102400),
)
HUB: dict[str, dict[str, Any]] = {  # as they are spelled there, but for `auto_map`
    "deepseek_v2_lite": V2
    | dict(hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, n_group=1, n_routed_experts=64)
    | dict(num_attention_heads=16, num_hidden_layers=27, num_key_value_heads=16, q_lora_rank=None, topk_group=1)
    | dict(routed_scaling_factor=1.0, topk_method="greedy"),
    "deepseek_v2": V2
    | dict(hidden_size=5120, intermediate_size=12288, moe_intermediate_size=1536, n_group=8, n_routed_experts=160)
    | dict(num_attention_heads=128, num_hidden_layers=60, num_key_value_heads=128, q_lora_rank=1536, topk_group=3)
    | dict(routed_scaling_factor=16.0, topk_method="group_limited_greedy"),
    "deepseek_v3": V2
    | dict(hidden_size=7168, intermediate_size=18432, moe_intermediate_size=2048, n_group=8, n_routed_experts=256)
    | dict(num_attention_heads=128, num_hidden_layers=61, num_key_value_heads=128, q_lora_rank=1536, topk_group=4)
    | dict(routed_scaling_factor=2.5, topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, ep_size=1)
    | dict(model_type="deepseek_v3", first_k_dense_replace=3, n_shared_experts=1, num_experts_per_tok=8)
    | dict(num_nextn_predict_layers=1, rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, vocab_size=129280)
    | dict(
        quantization_config=dict(
            activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", weight_block_size=[128, 128]
        )
    ),
}


def of(config: dict[str, Any]) -> models.Model:
    keys = Keys(config)
    fields = deepseek.fields(keys)
    keys.refuse_unread(deepseek.HARMLESS)
    return models.build("deepseek", **fields)


@pytest.mark.parametrize("size", HUB)
def test_sizes_are_what_the_hub_says(size: str) -> None:
    assert of(json.loads(json.dumps(HUB[size]))).config == models.build("deepseek", size=size).config


@pytest.mark.parametrize(
    ("size", "changes", "says"),
    [
        ("deepseek_v2", dict(norm_topk_prob=True), "norm_topk_prob = True; only False"),
        ("deepseek_v2", dict(topk_method="noaux_tc"), "topk_method = 'noaux_tc'; greedy and"),
        ("deepseek_v2", dict(moe_layer_freq=2), "moe_layer_freq = 2"),
        ("deepseek_v2", dict(num_key_value_heads=8), "num_key_value_heads = 8"),
        ("deepseek_v2", dict(qk_nope_dim=8), "qk_nope_dim = 8: unknown"),
        ("deepseek_v3", dict(scoring_func="softmax"), "scoring_func = 'softmax'"),
        ("deepseek_v3", dict(n_group=7), "expert_groups = 7"),
        ("deepseek_v3", dict(rope_scaling={**YARN, "mscale_all": 1.0}), "mscale_all"),
    ],
)
def test_what_is_not_known_is_refused(size: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        of(HUB[size] | changes)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(dense_layers=(1,)), "dense layers first"),
        (dict(shared=0), "shared = 0"),
        (dict(rope_interleaved=False), "rope_interleaved = True"),
        (dict(mtp=1), "mtp = 1"),
    ],
)
def test_a_config_that_the_hub_has_no_place_for_is_refused(changes: dict[str, Any], says: str) -> None:
    model = models.build("deepseek", width=32, heads=4, depth=2, **changes)
    with pytest.raises(UsageError) as refused:
        deepseek.config(model.config)
    assert says in str(refused.value)


# Weights of 8 bits


def quantised(tensor: Any, block: tuple[int, int]) -> tuple[Any, Any, Any]:
    """fp8 numbers, a scale for each block, and the plain tensor that they stand for."""
    O, D = tensor.shape
    values, plain = torch.empty(O, D, dtype=torch.float8_e4m3fn), torch.empty(O, D)
    scales = torch.empty(-(-O // block[0]), -(-D // block[1]))
    for i, j in np.ndindex(*scales.shape):
        at = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
        scales[i, j] = tensor[at].abs().max() / 448
        values[at] = (tensor[at] / scales[i, j]).to(torch.float8_e4m3fn)
        plain[at] = values[at].to(torch.float32) * scales[i, j]
    return values, scales, plain


def test_weights_of_8_bits_are_what_they_stand_for(tmp_path: Path) -> None:
    """As V3's files have them: all matrices of layers but the routers', in blocks of which the last are cut off."""
    from safetensors.torch import load_file, save_file

    module = reference("deepseek_v3", 0, num_hidden_layers=2, first_k_dense_replace=1, q_lora_rank=12)
    module.save_pretrained(tmp_path / "plain")
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if ".layers." in name and tensor.ndim == 2 and "mlp.gate.weight" not in name:
            values, scales, tensors[name] = quantised(tensor, (8, 6))
            tensors |= {f"{name}#": values, f"{name}_scale_inv": scales}
    folder = tmp_path / "fp8"
    folder.mkdir()
    eight = {name.removesuffix("#"): tensor for name, tensor in tensors.items() if f"{name}#" not in tensors}
    save_file(eight, folder / "model.safetensors")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    how = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [8, 6]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    save_file(
        {name: tensor for name, tensor in tensors.items() if not name.endswith(("#", "_scale_inv"))},
        tmp_path / "plain" / "model.safetensors",
        {"format": "pt"},
    )
    (_, found), (_, want) = (models.load_pretrained(f) for f in (folder, tmp_path / "plain"))
    for name, leaf in flatten(want).items():
        np.testing.assert_array_equal(flatten(found)[name], leaf)


# Modules that predict further tokens


def with_modules(module: Any, count: int, folder: Path) -> Any:
    """Save the network and random modules that predict `count` tokens more, named as V3's files name them."""
    from safetensors.torch import load_file, save_file
    from transformers.modeling_layers import MtpModel

    module.save_pretrained(folder)
    ahead, depth = MtpModel(module, count).eval(), module.config.num_hidden_layers
    tables = {"embed_tokens.weight": module.model.embed_tokens.weight, "shared_head.head.weight": module.lm_head.weight}
    own = {k: v for k, v in ahead.state_dict().items() if k.startswith("layers.")}
    names = {"mtp_block.": "", "post_norm": "shared_head.norm"}
    tensors = load_file(folder / "model.safetensors")
    for name, value in own.items():
        value.copy_(("norm" in name) + 0.3 * torch.randn_like(value))
        _, number, rest = name.split(".", 2)
        for theirs, there in names.items():
            rest = rest.replace(theirs, there)
        at = f"model.layers.{depth + int(number)}."
        tensors |= {f"{at}{table}": tensor.detach().clone() for table, tensor in tables.items()}
        if ".experts." not in rest or "shared" in rest:
            tensors[at + rest] = value.clone()
            continue
        each = (
            {"down_proj": value}
            if "down" in rest
            else dict(zip(("gate_proj", "up_proj"), value.chunk(2, 1), strict=True))
        )
        for kind, stack in each.items():
            tensors |= {f"{at}mlp.experts.{e}.{kind}.weight": w.clone().contiguous() for e, w in enumerate(stack)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return ahead


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_modules_ahead_are_transformers(seed: int, tmp_path: Path) -> None:
    """Logits of the tokens after the next; files written with the modules are loaded by both, and without by both."""
    count, tokens = 1 + seed % 2, np.random.default_rng(seed).integers(0, 50, (2, 20))
    module = reference("deepseek_v3", seed, num_nextn_predict_layers=count)
    with torch.no_grad():
        theirs = with_modules(module, count, tmp_path / "theirs")
        model, variables = models.load_pretrained(tmp_path / "theirs", mtp=count)
        assert model.config.mtp == count
        ahead = jax.jit(lambda v: [(a.x, a.table) for a in model.apply(v, tokens, train=True, logits=False).mtp_values])
        x = module.model(torch.tensor(tokens)).last_hidden_state
        for k, (ours, table) in enumerate(jax.device_get(ahead(variables))):
            n = tokens.shape[1] - 1 - k
            places = torch.arange(k + 1, k + 1 + n)[None]
            x = theirs.forward_layer(k, x[:, :n], places, None, input_ids=torch.tensor(tokens[:, k + 1 :]))
            logits = np.einsum("btd,vd->btv", ours[:, :n], table)
            assert_close(logits[..., : model.config.vocab], module.lm_head(x))

    models.save_pretrained(model, jax.device_get(variables), tmp_path / "ours")
    saved, names = (TensorReader(tmp_path / name) for name in ("ours", "theirs"))
    assert saved.shapes == names.shapes
    for name in names.shapes:
        np.testing.assert_array_equal(saved.read(name), names.read(name))
    again = models.load_pretrained(tmp_path / "ours", mtp=count)
    jax.tree.map(np.testing.assert_array_equal, again[1], variables)

    plain, fewer = models.load_pretrained(tmp_path / "ours")
    assert plain.config.mtp == 0
    assert "mtp" not in fewer["params"]
    passed = pretrained.find(plain, tmp_path / "ours").ignored
    assert len(passed) == sum(f"layers.{model.config.depth + k}." in n for k in range(count) for n in names.shapes)
    back, loading_info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not loading_info["missing_keys"]
    for name, parameter in module.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], parameter)
