"""Settings and tensors that mean nothing, or something else than they seem: refused in one line that names them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from errors import UsageError
from models import pretrained
from models.pretrained.config_keys import Keys
from models.pretrained.formats.quantised import DequantisingReader
from tests.support.cases import random_variables

DECODER: dict[str, Any] = dict(vocab=64, context=32, width=32, depth=2, heads=4, hidden=48)
MADE: dict[str, tuple[str, dict[str, Any]]] = {  # model_type -> family, fields
    "mixtral": ("mixtral", dict(kv_heads=2, experts=4)),
    "qwen3_moe": ("mixtral", dict(kv_heads=2, experts=4, qk_norm=True)),
    "gemma2": ("gemma", dict(kv_heads=2, head_dim=8, window=4)),
    "gemma3_text": ("gemma", dict(kv_heads=2, head_dim=8, window=4, qk_norm=True, rope_local_base=1e3)),
    "gemma4_text": ("gemma4", dict(kv_heads=2, head_dim=8, window=4)),
    "gpt_oss": ("gpt_oss", dict(kv_heads=2, head_dim=8, window=4, experts=4)),
    "llama4_text": ("llama4", dict(kv_heads=2, head_dim=8, chunk=4, experts=4, expert_hidden=16)),
    "deepseek_v2": ("deepseek", dict(experts=4, expert_hidden=16, rope="yarn", rope_factor=2.0)),
    "deepseek_v3": ("deepseek", dict(experts=4, expert_hidden=16, router="sigmoid", norm_topk=True)),
}


def saved(kind: str, where: Path, **more: Any) -> models.Model:
    family, fields = MADE[kind]
    model = models.build(family, **{**DECODER, **fields, **more})
    models.save_pretrained(model, random_variables(model), where)
    return model


def edited(where: Path, **changes: Any) -> None:
    file = where / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        ("qwen3_moe", {"decoder_sparse_step": "x"}, "decoder_sparse_step = 'x'"),
        ("qwen3_moe", {"mlp_only_layers": ["x"]}, "mlp_only_layers"),
        ("qwen3_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size = 8"),
        ("llama4_text", {"moe_layers": None, "interleave_moe_layer_step": 0}, "interleave_moe_layer_step = 0"),
        ("llama4_text", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval = 0"),
        ("llama4_text", {"no_rope_layers": ["0", 1]}, "each 0 or 1"),
        ("llama4_text", {"attn_temperature_tuning": "false"}, "attn_temperature_tuning = 'false'"),
        ("deepseek_v2", {"first_k_dense_replace": 1.9}, "first_k_dense_replace = 1.9"),
        (
            "deepseek_v2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": "x"}},
            "mscale_all_dim",
        ),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "full_attention = 3"),
        ("gemma3_text", {"sliding_window_pattern": 2.5}, "sliding_window_pattern = 2.5"),
        ("gemma2", {"max_position_embeddings": 2.5}, "max_position_embeddings = 2.5"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null"),
        ("gemma2", {"sliding_window_size": 5}, "sliding_window_size = 5"),
        ("gpt_oss", {"sliding_window": None}, "sliding_window is null"),
        ("gemma4_text", {"hidden_size_per_layer_input": 8}, "hidden_size_per_layer_input = 8"),
        ("gemma4_text", {"num_kv_shared_layers": 1}, "num_kv_shared_layers = 1"),
        ("gemma4_text", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention = 'all'"),
        ("gemma4_text", {"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
    ],
)
def test_strange_settings(kind: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "H")
    edited(tmp_path / "H", **changes)
    with pytest.raises(UsageError) as caught:
        models.load_pretrained(tmp_path / "H")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_strange_values_end_in_a_refusal_or_a_network(kind: str, tmp_path: Path) -> None:
    """Each key of a config.json, many values: never one of Python's own errors."""
    saved(kind, tmp_path / "H")
    settings = json.loads((tmp_path / "H" / "config.json").read_text())
    shapes = DequantisingReader(tmp_path / "H").shapes
    layout = pretrained.LAYOUTS[pretrained.TYPES[kind]]
    values: tuple[Any, ...] = (None, 0, -1, 1, 2.5, float("inf"), True, "x", "", [], [0], ["x"], {}, {"a": 1}, [None])
    for key in set(settings) - {"model_type", "num_hidden_layers"}:
        for value in values:
            with suppress(UsageError):
                keys = Keys({**settings, key: value}, shapes)
                fields = layout.fields(keys)
                keys.refuse_unread(layout.HARMLESS)
                models.build(pretrained.TYPES[kind], **fields)


def test_layers_beyond_the_last_are_surplus_unless_they_predict(tmp_path: Path) -> None:
    saved("deepseek_v2", tmp_path / "H", depth=3)
    edited(tmp_path / "H", num_hidden_layers=2)
    with pytest.raises(UsageError, match=r"layers\.2\..* is not part of this network"):
        models.load_pretrained(tmp_path / "H")


@pytest.mark.parametrize(("dtype", "says"), [(np.uint8, "U8"), (np.int64, "I64")])
def test_scales_of_another_kind(dtype: Any, says: str, tmp_path: Path) -> None:
    saved("deepseek_v3", tmp_path / "H")
    file = tmp_path / "H" / "model.safetensors"
    tensors, name = load_file(file), "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = np.ones((1, tensors[name].shape[1] // 128 or 1), dtype)
    save_file(tensors, file)
    with pytest.raises(UsageError, match=rf"o_proj\.weight_scale_inv' .* are of {says}"):
        models.load_pretrained(tmp_path / "H")


@pytest.mark.parametrize(
    ("family", "fields", "says"),
    [
        ("gemma", dict(window=4, qk_norm=True, rope="linear", rope_factor=8.0), "give a rope_local_base"),
        ("deepseek", dict(rope="linear", rope_factor=8.0, mscale=1.0), "has rope yarn"),
        ("gemma4", dict(window=4, head_dim=8, sliding_layers=(0, 1)), "last layer of a published Gemma 4"),
    ],
)
def test_networks_that_have_no_published_form(family: str, fields: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = models.build(family, **{**DECODER, **fields})
    with pytest.raises(UsageError, match=says):
        models.save_pretrained(model, random_variables(model), tmp_path / "H")
    assert not (tmp_path / "H").exists()


def test_chunks_that_are_off_come_back(tmp_path: Path) -> None:
    model = saved("llama4_text", tmp_path / "H", chunk=None)
    assert json.loads((tmp_path / "H" / "config.json").read_text())["layer_types"] == ["full_attention"] * 2
    assert models.load_pretrained(tmp_path / "H")[0].config == model.config
