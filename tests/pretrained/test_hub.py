"""Folders as the Hugging Face hub has them, against transformers run live: random configs, random weights."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import models
from errors import UsageError
from tests.support.choices import left_out, noted, seeds
from tests.support.hub import assert_close, compare, reference, torch, transformers
from tests.support.hub_kinds import KINDS, SEEDS

LINEAR, YARN = {"rope_type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 4.0, "finetuned": True}
QWEN = {"model_type": "qwen3", "num_key_value_heads": 2}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "more",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}, "rope_scaling": LINEAR, "rope_theta": 5e5},
        {"rope_parameters": {**LINEAR, "rope_theta": 1e3}, "rope_scaling": None, "rope_theta": 5e5},
        {"rope_scaling": LINEAR, "rope_theta": 5e5},
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 8}},
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 8}, "original_max_position_embeddings": 16},
        {**QWEN, "use_sliding_window": True, "max_window_layers": 0},
        {**QWEN, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": None},
        {**QWEN, "num_key_value_heads": None},
        {"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": False},
    ],
)
def test_a_config_means_what_it_means_to_transformers(more: dict[str, Any], tmp_path: Path) -> None:
    """Where spellings disagree, and where keys are absent or null."""
    sizes = dict(num_hidden_layers=2, num_attention_heads=4, head_dim=8, intermediate_size=40)
    values = dict(model_type="llama", vocab_size=64, hidden_size=32, max_position_embeddings=64, **sizes) | more
    theirs = transformers.AutoConfig.for_model(**json.loads(json.dumps(values)))
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    module.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values))
    model, variables = models.load_pretrained(tmp_path)
    if values["model_type"] == "qwen3":
        assert [f"{layer.kind}_attention" for layer in model.config.layers] == theirs.layer_types
        assert model.config.window in (None, theirs.sliding_window)
    tokens = np.random.default_rng(0).integers(0, 64, (2, 40))
    with torch.no_grad():
        want = module(torch.tensor(tokens)).logits.numpy()
    got = np.asarray(jax.jit(model.predict)(variables, tokens))
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_configs_of_a_kind_hold_every_choice(kind: str) -> None:
    """But those that only some of its configs come to, and those of positions, which all kinds share."""
    found = noted(KINDS[kind][1], SEEDS[kind])
    places = [p for p in found[0].could if p[0] != "rope" and all(p in c.could for c in found)]
    assert places
    assert not left_out(found, places)


def test_the_configs_of_all_kinds_hold_the_rest() -> None:
    assert not left_out([choices for kind in KINDS for choices in noted(KINDS[kind][1], SEEDS[kind])])


FIRST = ("gpt2", "llama", "mixtral", "gemma2")  # of each sort one in the default suite


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(k, *s.values, marks=s.marks or ([] if k in FIRST else [pytest.mark.slow]))
        for k in KINDS
        for s in seeds(*SEEDS[k], weekly=4)
    ],
)
def test_networks_are_transformers(kind: str, seed: int, tmp_path: Path) -> None:
    """What they save is what we load; what we save they load strictly, bit for bit."""
    module = reference(kind, seed)
    module.save_pretrained(tmp_path / "theirs")
    compare(module, tmp_path / "theirs")
    model, variables = models.load_pretrained(tmp_path / "theirs")
    models.save_pretrained(model, jax.device_get(variables), tmp_path / "ours")
    back, loading_info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.arange(20)[None]
    assert_close(back.eval()(tokens).logits.detach(), module(tokens).logits.detach())
    for name, parameter in module.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], parameter)
    again = models.load_pretrained(tmp_path / "ours")
    assert again[0].config == model.config
    jax.tree.map(np.testing.assert_array_equal, again[1], variables)


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(model_type="llamma"), "'llama'"),
        (dict(model_type="t5"), "model_type of config.json 't5'"),
        (dict(model_type=None), "config.json has no model_type"),
        (dict(model_type=None, optim={}), "but a run: it goes to --workdir"),
        (dict(softcap=30.0), "softcap = 30.0: unknown"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "rope type 'dynamic'"),
        (dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "short_factor": [1]}), "short_factor"),
        (dict(hidden_act="gelu_10"), "gelu_10"),
        (dict(num_key_value_heads=3), "kv_heads = 3"),
        (dict(num_hidden_layers=None), "config.json has no num_hidden_layers"),
        (dict(vocab_size=9999), "not (9999, "),
    ],
)
def test_a_config_that_is_not_ours_is_refused(changes: dict, says: str, tmp_path: Path) -> None:
    reference("llama", 0).save_pretrained(tmp_path)
    spoil(tmp_path, **changes)
    with pytest.raises(UsageError) as refused:
        models.load_pretrained(tmp_path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
