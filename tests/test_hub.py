"""Folders as the Hugging Face hub has them, against transformers run live: random configs, random weights."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models import published
from models.spec import flatten

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")

CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
CLASSES["qwen3"] = "Qwen3ForCausalLM"
CONFIGS = {
    kind: name.replace("LMHeadModel", "Config").replace("ForCausalLM", "Config") for kind, name in CLASSES.items()
}


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


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def reference(kind: str, seed: int, **changes: Any) -> Any:
    """Their model of a random config, every parameter random, those of norms and biases too."""
    values = plain(globals()[kind](np.random.default_rng(seed))) | changes
    drop = {"gpt2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}.get(kind, {})
    config = getattr(transformers, CONFIGS[kind])(**values, **drop, attn_implementation="eager")
    torch.manual_seed(seed)
    module = getattr(transformers, CLASSES[kind])(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            one = 1.0 if ("norm" in name or "ln_" in name) and name.endswith("weight") else 0.0
            parameter.copy_(one + 0.3 * torch.randn_like(parameter))
    return module


def assert_close(ours: Any, theirs: Any, floor: float = 0.0, tolerance: float = 2e-5) -> None:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), floor)


def compare(module: Any, folder: Path) -> None:
    """Logits, loss, the gradient of every parameter, and twelve greedy tokens."""
    model, variables = models.load_pretrained(folder)
    vocab, draw = model.config.vocab, np.random.default_rng(1)
    tokens = draw.integers(0, vocab, (2, 24))
    theirs = module(torch.tensor(tokens), labels=torch.tensor(tokens))
    theirs.loss.backward()

    def loss(params: Any) -> Any:
        logits = model.apply({"params": params}, jnp.asarray(tokens)).value[..., :vocab]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), jnp.asarray(tokens)[:, 1:, None], -1)
        return -jnp.mean(picked), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert_close(logits, theirs.logits.detach())
    assert_close(value, theirs.loss.detach())
    named = {name: p.grad.numpy() for name, p in module.named_parameters()}
    rows = {row.path: row for row in published.LAYOUTS[model.family].rows(model.config)}
    whole = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in named.values()))
    floor = 0.01 * whole / len(named) ** 0.5
    ours = {
        name: row.theirs(np.asarray(leaf[at] if at else leaf))
        for path, leaf in flatten(grads).items()
        for row in [rows[path]]
        for at, name in zip(np.ndindex(leaf.shape[: row.stacked]), row.names(leaf.shape), strict=True)
    }
    assert set(ours) == set(named)
    for name, grad in ours.items():
        assert_close(grad, named[name], floor)

    start = tokens[:, :6]
    want = module.generate(
        torch.tensor(start), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    ).numpy()
    cache, given, found = model.cache(2, 18), jnp.asarray(start), start
    for _ in range(12):
        out = model.apply(variables, given, cache=cache)
        cache, given = out.cache, jnp.argmax(out.value[:, -1:], -1)
        found = np.concatenate([found, given], 1)
    np.testing.assert_array_equal(found, want)


LINEAR, YARN = {"rope_type": "linear", "factor": 2.0}, {"type": "yarn", "factor": 4.0, "finetuned": True}
QWEN = {"model_type": "qwen3", "num_key_value_heads": 2}


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
    got = np.asarray(model.predict(variables, jnp.asarray(tokens)))
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 12))])
@pytest.mark.parametrize("kind", list(CLASSES))
def test_networks_are_transformers(kind: str, seed: int, tmp_path: Path) -> None:
    """What they save is what we load; what we save they load strictly, bit for bit."""
    module = reference(kind, seed)
    module.save_pretrained(tmp_path / "theirs")
    compare(module, tmp_path / "theirs")
    model, variables = models.load_pretrained(tmp_path / "theirs")
    models.save_pretrained(model, variables, tmp_path / "ours")
    back, told = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.arange(20)[None]
    assert_close(back.eval()(tokens).logits.detach(), module(tokens).logits.detach())
    for name, parameter in module.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], parameter)
    again = models.load_pretrained(tmp_path / "ours")
    assert again[0].config == model.config
    for name, leaf in flatten(variables).items():
        np.testing.assert_array_equal(flatten(again[1])[name], leaf)


def spoil(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(model_type="llamma"), "'llama'"),
        (dict(model_type="t5"), "model_type of config.json 't5'"),
        (dict(softcap=30.0), "softcap = 30.0: not known here"),
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
