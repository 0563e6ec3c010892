"""gpt-oss in its released form: experts of four bits, the keys of its config.json, and what absent ones mean."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from models.pretrained.config_keys import Keys
from models.pretrained.layouts.gpt_oss import config, fields
from tests.support.cases import random_variables
from tests.support.hub import assert_close, torch, transformers

# What the 20-billion model's file holds, its sizes cut down.
RELEASED: dict[str, Any] = {
    **dict(model_type="gpt_oss", architectures=["GptOssForCausalLM"], attention_bias=True, attention_dropout=0.0),
    **dict(eos_token_id=2, pad_token_id=1, experts_per_token=2, head_dim=8, hidden_act="silu", hidden_size=32),
    **dict(initial_context_length=4096, initializer_range=0.02, intermediate_size=64, max_position_embeddings=131072),
    **dict(num_attention_heads=4, num_experts_per_tok=2, num_hidden_layers=2, num_key_value_heads=2),
    **dict(num_local_experts=3, output_router_logits=False, rms_norm_eps=1e-5, rope_theta=150000),
    **dict(router_aux_loss_coef=0.9, sliding_window=5, swiglu_limit=7.0, tie_word_embeddings=False, vocab_size=64),
    **dict(layer_types=["sliding_attention", "full_attention"], use_cache=True, transformers_version="4.55.0.dev0"),
    "rope_scaling": {
        **dict(beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096),
        **dict(rope_type="yarn", truncate=False),
    },
}
QUANTISED = {"quantization_config": {"modules_to_not_convert": ["model.embed_tokens"], "quant_method": "mxfp4"}}
VALUES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def folder_of(where: Path, tensors: dict[str, np.ndarray], **keys: Any) -> Path:
    where.mkdir()
    save_file(tensors, where / "model.safetensors", metadata={"format": "pt"})
    (where / "config.json").write_text(json.dumps({**RELEASED, **keys}))
    return where


@pytest.fixture(scope="module")
def four_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network as it was released: experts as blocks and scales, all else plain."""
    where = tmp_path_factory.mktemp("hub")
    (where / "config.json").write_text(json.dumps(RELEASED))
    model = models.build("gpt_oss", **fields(Keys(RELEASED)))
    models.save_pretrained(model, random_variables(model), where / "plain")
    draw, tensors = np.random.default_rng(0), load_file(where / "plain" / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj")]:
        E, D, O = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = draw.integers(0, 256, (E, O, D // 32, 16)).astype(np.uint8)
        tensors[f"{name}_scales"] = draw.integers(120, 128, (E, O, D // 32)).astype(np.uint8)
    return folder_of(where / "released", tensors, **QUANTISED)


def number(byte: int, high: bool, scale: int) -> float:
    bits = byte >> 4 if high else byte & 15
    return (-1) ** (bits >> 3) * VALUES[bits & 7] * 2.0 ** (scale - 127)


def test_experts_of_four_bits_are_read_as_what_they_stand_for(four_bits: Path, tmp_path: Path) -> None:
    """Number by number; the same network as from a file of plain numbers, in bfloat16 too, which loses none."""
    tensors = load_file(four_bits / "model.safetensors")
    for blocks in [name for name in tensors if name.endswith("_blocks")]:
        codes, name = tensors.pop(blocks), blocks.removesuffix("_blocks")
        scales = tensors.pop(f"{name}_scales")
        E, O, J, _ = codes.shape
        plain = np.empty((E, 32 * J, O), np.float32)
        for e, o, j, i in np.ndindex(codes.shape):
            for high in (False, True):
                plain[e, 32 * j + 2 * i + high, o] = number(int(codes[e, o, j, i]), high, int(scales[e, o, j]))
        tensors[name] = plain
    folder_of(tmp_path / "plain", tensors)
    model, variables = models.load_pretrained(four_bits)
    other, want = models.load_pretrained(tmp_path / "plain")
    assert model.config == other.config
    half = flatten(models.load_pretrained(four_bits, dtype="bfloat16")[1])
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(leaf, flatten(want)[path], err_msg=path)
        if "experts" in path and path.endswith("kernel"):
            np.testing.assert_array_equal(half[path].astype(jnp.float32), leaf, err_msg=path)


def test_experts_of_four_bits_are_transformers(four_bits: Path, tmp_path: Path) -> None:
    """Which makes the file plain by itself, bit for bit the same; what we write of it is plain, and all of it."""
    how = transformers.Mxfp4Config(dequantize=True)
    theirs = transformers.GptOssForCausalLM
    loaded = theirs.from_pretrained(four_bits, quantization_config=how, dtype=torch.float32)
    model, variables = models.load_pretrained(four_bits)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 20))
    with torch.no_grad():
        want = loaded.eval()(torch.tensor(tokens)).logits.numpy()
    assert_close(jax.jit(model.predict)(variables, jnp.asarray(tokens)), want)

    models.save_pretrained(model, variables, tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float32"}
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    state = loaded.state_dict()
    assert set(tensors) == set(state)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, state[name].numpy(), err_msg=name)
    again = flatten(models.load_pretrained(tmp_path / "ours")[1])
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(leaf, again[path], err_msg=path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, n: {k: v for k, v in t.items() if k != f"{n}_scales"}, "with no scales in"),
        (lambda t, n: {**t, f"{n}_scales": t[f"{n}_scales"][..., :0]}, "with scales of shape (3, 128, 0)"),
        (lambda t, n: {**t, f"{n}_blocks": t[f"{n}_blocks"][..., :8].copy()}, "is mxfp4 of shape (3, 128, 1, 8)"),
    ],
)
def test_blocks_without_their_scales_are_refused(change: Any, says: str, four_bits: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(four_bits, tmp_path / "hub"))
    file = folder / "model.safetensors"
    save_file(change(load_file(file), "model.layers.0.mlp.experts.gate_up_proj"), file)
    with pytest.raises(UsageError) as refused:
        models.load_pretrained(folder)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


ABSENT = {k: v for k, v in RELEASED.items() if k not in ("rope_scaling", "rope_theta", "layer_types")}
SHORT = {**RELEASED["rope_scaling"], "original_max_position_embeddings": 16}
MEANINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # what stays of the keys, what is changed
    (ABSENT, {}),
    (RELEASED, {}),
    (ABSENT, {"rope_theta": 1e3, "rope_scaling": None}),
    (ABSENT, {"rope_parameters": {"rope_type": "default"}}),
    (ABSENT, {"rope_parameters": {**SHORT, "truncate": True}}),
    (ABSENT, {"rope_scaling": SHORT, "original_max_position_embeddings": 32}),
    (RELEASED, {"layer_types": ["full_attention"] * 2}),
    (RELEASED, {"layer_types": ["full_attention", "sliding_attention"]}),
    (RELEASED, {"attention_bias": False, "tie_word_embeddings": True}),
    (RELEASED, {"swiglu_limit": 0.3, "swiglu_alpha": 1.0}),
    ({k: v for k, v in RELEASED.items() if k != "num_local_experts"}, {"num_experts": 4}),
]


@pytest.mark.parametrize(
    ("kept", "changes"), [pytest.param(*m, marks=[pytest.mark.slow] if i else []) for i, m in enumerate(MEANINGS)]
)
def test_a_config_means_what_it_means_to_transformers(kept: dict, changes: dict, tmp_path: Path) -> None:
    """As it was released, where keys are absent or null, and by other names."""
    values = {**kept, **changes}
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(values)))
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    module.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    model, variables = models.load_pretrained(tmp_path)
    assert [f"{layer.kind}_attention" for layer in model.config.layers] == theirs.layer_types
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        want = module(torch.tensor(tokens)).logits.numpy()
    assert_close(jax.jit(model.predict)(variables, jnp.asarray(tokens)), want)


@pytest.mark.parametrize("size", list(models.FAMILIES["gpt_oss"].SIZES))
def test_a_size_is_what_its_config_says(size: str) -> None:
    """The Config that comes of the released keys, and back."""
    c = models.build("gpt_oss", size=size).config
    shape = dict(hidden_size=2880, intermediate_size=2880, num_attention_heads=64, num_key_value_heads=8, head_dim=64)
    values = {**RELEASED, **shape, "vocab_size": 201088, "num_experts_per_tok": 4, "sliding_window": 128}
    values |= dict(num_hidden_layers=c.depth, num_local_experts=c.experts, layer_types=None)
    assert models.build("gpt_oss", **fields(Keys(values))).config == c
    back = models.build("gpt_oss", **fields(Keys(config(c)))).config
    assert back.layers == c.layers
    assert {**vars(back), "sliding_layers": None} == vars(c)


STRANGE = (None, "x", 3, -1, 0, 2.5, 10**9, np.nan, True, [], [1], {}, {"a": 1})


@pytest.mark.slow
def test_a_strange_value_in_a_config_is_legal_or_refused_by_name(tmp_path: Path) -> None:
    """No value ends in one of Python's own errors."""
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    scaling = [{"rope_scaling": {**RELEASED["rope_scaling"], k: v}} for k in RELEASED["rope_scaling"] for v in STRANGE]
    said = []
    for changes in scaling + [{key: value} for key in (*RELEASED, "swiglu_alpha") for value in STRANGE]:
        (tmp_path / "config.json").write_text(json.dumps(RELEASED | changes))
        with pytest.raises(UsageError) as refused:  # one tensor is too few for any
            pretrained.read_config(tmp_path)
        said.append(str(refused.value))
    assert not [text for text in said if "\n" in text]
    assert sum("too few" not in text for text in said) > len(said) / 4
