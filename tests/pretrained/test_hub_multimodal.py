"""Networks that see images too: their text alone is read, from the folder as it is."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models
from errors import UsageError
from models import pretrained
from tests.support.cases import random_variables
from tests.support.harness import jit_predict
from tests.support.hub import assert_close, torch, transformers

EYE = dict(hidden_size=16, num_hidden_layers=1, intermediate_size=64, num_attention_heads=2, image_size=28)
TEXT: dict[str, Any] = {
    **dict(hidden_size=32, num_hidden_layers=3, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2),
    **dict(head_dim=8, vocab_size=90, pad_token_id=0),
}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        {
            **dict(sliding_window=5, layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        dict(patch_size=14),
    ),
    "llama4": (
        "Llama4",
        dict(intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=4, interleave_moe_layer_step=2),
        dict(patch_size=14, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, num_channels=3),
    ),
    "gemma4": (
        "Gemma4",
        {
            **dict(sliding_window=5, layer_types=["sliding_attention", "sliding_attention", "full_attention"]),
            **dict(global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True),
            **dict(hidden_size_per_layer_input=0, enable_moe_block=True, num_experts=4, top_k_experts=2),
            **dict(moe_intermediate_size=12),
        },
        dict(head_dim=8, num_key_value_heads=2, position_embedding_size=40),
    ),
}
SAVED = {  # how releases of transformers named what they saved
    "as now": lambda name: name,
    "as in 4.52": lambda name: re.sub(
        r"^(vision_tower|multi_modal_projector)\.",
        r"model.\1.",
        name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head"),
    ),
}


def folder_of(kind: str, where: Path) -> Any:
    name, text, eye = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, **text},
        vision_config={**EYE, **eye},
        **({} if kind == "gemma4" else dict(mm_tokens_per_image=4, image_token_index=80)),
    )
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    module.save_pretrained(where)
    return module


@pytest.mark.parametrize("kind", ["gemma3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("llama4", "gemma4"))])
def test_the_text_is_read_and_what_sees_is_ignored(kind: str, tmp_path: Path) -> None:
    """However a release of transformers named what it saved."""
    module, file = folder_of(kind, tmp_path), tmp_path / "model.safetensors"
    tokens = np.random.default_rng(0).integers(1, 70, (2, 12))
    text = module.language_model if kind == "llama4" else module  # whose own forward pass fails without an image
    with torch.no_grad():
        want = text(torch.tensor(tokens)).logits
    tensors = load_file(file)
    for renamed in SAVED.values():
        save_file({renamed(name): x for name, x in tensors.items()}, file)
        model, variables = models.load_pretrained(tmp_path)
        assert_close(jit_predict(model)(variables, tokens), want)
        assert_ignored(kind, model, tmp_path)


def assert_ignored(kind: str, model: models.Model, folder: Path) -> None:
    """The tensors of the vision part are ignored, these alone, and none is unused."""
    found = pretrained.find(model, folder)
    assert not found.unused
    beside = {"gemma3": "vision_tower multi_modal_projector", "llama4": "vision_model multi_modal_projector"}
    beside["gemma4"] = "vision_tower embed_vision"
    assert {name.removeprefix("model.").split(".")[0] for name in found.ignored} == set(beside[kind].split())


def test_what_a_released_file_leaves_out_is_as_in_transformers(tmp_path: Path) -> None:
    """Of its text gemma-3-4b's names six keys."""
    text = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34, sliding_window=1024)
    text |= dict(model_type="gemma3_text", rope_scaling={"factor": 8.0, "rope_type": "linear"})
    eye = dict(image_token_index=262144, boi_token_index=255999, eoi_token_index=256000, mm_tokens_per_image=256)
    values = dict(model_type="gemma3", text_config=text, vision_config={}, initializer_range=0.02, **eye)
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file({f"{i}": np.zeros(1) for i in range(40)}, tmp_path / "model.safetensors")
    assert pretrained.read_config(tmp_path) == models.build("gemma", size="gemma3_4b", rope_context=None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_config": None}, "text_config = None; it must be a mapping"),
        ({"novelty": 1}, "novelty = 1"),
        ({"text_config": {"novelty": 1}}, "novelty = 1"),
        ({"model_type": "gemma5"}, "gemma3"),
    ],
)
def test_strange_settings_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder_of("gemma3", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    if isinstance(changes.get("text_config"), dict):
        changes = {"text_config": {**values["text_config"], **changes["text_config"]}}
    (tmp_path / "config.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(UsageError, match=says):
        models.load_pretrained(tmp_path)


def test_a_part_that_is_no_text_is_surplus_beside_a_network_of_text(tmp_path: Path) -> None:
    model = models.build("llama", vocab=64, width=16, depth=1, heads=2)
    models.save_pretrained(model, random_variables(model), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "vision_tower.patch": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"'vision_tower\.patch' is not part of this network"):
        models.load_pretrained(tmp_path)
