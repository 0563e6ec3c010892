"""Vision Transformers of the hub, against transformers run live, and of timm, against a net that bears its names."""

import json
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
from models.pretrained.formats.interpolate import ResizePositions
from models.pretrained.layouts import vit_timm

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")

from tests.support.choices import left_out, noted, seeds  # noqa: E402
from tests.support.harness import jit_predict  # noqa: E402
from tests.support.hub import assert_close  # noqa: E402  (needs both)
from tests.support.timm_net import Net  # noqa: E402  (needs torch)

CLASSES = {"none": "ViTModel", "classes": "ViTForImageClassification"}
SEEDS = (5, 42, 678)  # the first by default, the others slow


def randomise(module: Any, seed: int) -> Any:
    """The same with every parameter random, those of norms about 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(one + 0.3 * torch.randn_like(parameter))
    return module.eval()


def random_config(draw: Any) -> Any:
    heads, square = int(draw.choice([1, 2, 4])), bool(draw.integers(2))
    I, J = (int(n) for n in draw.integers(2, 5, 2))
    rows, columns = (int(n) for n in draw.integers(2, 5, 2))
    return transformers.ViTConfig(
        image_size=4 * rows if square else [I * rows, J * columns],
        patch_size=4 if square else [I, J],
        num_channels=int(draw.choice([1, 3])),
        hidden_size=heads * int(draw.choice([4, 6, 8])),
        num_attention_heads=heads,
        num_hidden_layers=int(draw.integers(1, 4)),
        intermediate_size=int(draw.choice([20, 40])),
        hidden_act=str(draw.choice(["gelu", "gelu_new", "relu"])),
        layer_norm_eps=float(draw.choice([1e-12, 1e-3])),
        qkv_bias=bool(draw.integers(2)),
        num_labels=int(draw.integers(2, 5)),
        attn_implementation="eager",
    )


def reference(head: str, seed: int, **changes: Any) -> Any:
    """Their model of a random config."""
    draw = np.random.default_rng(seed)
    config = random_config(draw)
    config.update(changes)
    more = {"add_pooling_layer": bool(draw.integers(2))} if head == "none" else {}
    return randomise(getattr(transformers, CLASSES[head])(config, **more), seed)


def images(inputs: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, *inputs)).astype(np.float32)


def theirs(image: np.ndarray) -> Any:
    return torch.tensor(image.transpose(0, 3, 1, 2))


def ours(model: models.Model, params: Any, image: np.ndarray, label: np.ndarray) -> tuple[Any, Any]:
    """A loss, and what comes out."""
    value = model.apply({"params": params}, image).value
    if model.config.head == "none":
        return jnp.mean(value**2), value
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(value), label[:, None], 1)), value


def assert_gradients(model: models.Model, layout: Any, grads: Any, named: dict[str, np.ndarray]) -> None:
    """Every gradient of theirs, by their names; of a tensor that several leaves share each has its part."""
    whole = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in named.values()))
    floor, rows = 0.01 * whole / len(named) ** 0.5, {row.path: row for row in layout.rows(model.config)}
    found = {name: np.full(g.shape, np.nan, np.float32) for name, g in named.items()}
    for path, leaf in flatten(grads).items():
        for at, name in zip(
            np.ndindex(leaf.shape[: rows[path].stacked_dims]), rows[path].names(leaf.shape), strict=True
        ):
            name = name if name in named else name.removeprefix("vit.")
            rows[path].write(np.asarray(leaf[at] if at else leaf), found[name])
    for name, mine in found.items():
        # A softmax does not see a bias that all keys share: its gradient is the rounding of what cancels in it.
        kernel = named[name.replace(".bias", ".weight")] if name.endswith("key.bias") else None
        assert_close(mine, named[name], floor if kernel is None else float(np.linalg.norm(kernel)))


def spelt(module: Any) -> dict[str, str]:
    """Their names of parameters in the module -> in files."""
    changes = {"layers.": "encoder.layer.", ".attention.q_proj": ".attention.attention.query"}
    changes |= {".attention.k_proj": ".attention.attention.key", ".attention.v_proj": ".attention.attention.value"}
    changes |= {".attention.o_proj": ".attention.output.dense", ".mlp.fc1": ".intermediate.dense"}
    changes |= {".mlp.fc2": ".output.dense"}
    found = {}
    for name, _ in module.named_parameters():
        new = name
        for old, other in changes.items():
            new = new.replace(old, other)
        found[name] = new
    return found


def test_the_configs_hold_every_choice() -> None:
    assert not left_out(noted(random_config, SEEDS))


@pytest.mark.parametrize("seed", seeds(*SEEDS, weekly=12))
@pytest.mark.parametrize("head", list(CLASSES))
def test_networks_are_transformers(head: str, seed: int, tmp_path: Path) -> None:
    """What comes out, loss, the gradient of every parameter; what we save they load strictly, bit for bit."""
    module = reference(head, seed)
    module.save_pretrained(tmp_path / "theirs")
    model, variables = models.load_pretrained(tmp_path / "theirs")
    image = images(model.config.inputs)
    label = np.random.default_rng(2).integers(0, model.config.classes, 3)
    if head == "none":
        want = module(theirs(image)).last_hidden_state
        loss = (want**2).mean()
    else:
        out = module(theirs(image), labels=torch.tensor(label))
        want, loss = out.logits, out.loss
    loss.backward()
    (value, found), grads = jax.jit(jax.value_and_grad(lambda p: ours(model, p, image, label), has_aux=True))(
        variables["params"]
    )
    assert_close(value, loss.detach())
    assert_close(found, want.detach())
    files = spelt(module)
    named = {files[name]: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}
    assert len(files) - len(named) in (0, 2)  # a pooler
    assert_gradients(model, pretrained.LAYOUTS["vit"], grads, named)

    models.save_pretrained(model, jax.device_get(variables), tmp_path / "ours")
    more = {"add_pooling_layer": False} if head == "none" else {}
    load = getattr(transformers, CLASSES[head]).from_pretrained
    back, loading_info = load(tmp_path / "ours", output_loading_info=True, **more)
    assert not any(loading_info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in back.state_dict().items():
        np.testing.assert_array_equal(module.state_dict()[name], parameter)
    again = models.load_pretrained(tmp_path / "ours")
    assert again[0].config == model.config
    jax.tree.map(np.testing.assert_array_equal, again[1], variables)


@pytest.mark.parametrize("size", [(40, 24), pytest.param((16, 56), marks=pytest.mark.slow)])
def test_images_of_another_size_are_seen_as_by_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    """Positions are brought to a finer, a coarser, an oblong grid."""
    module = reference("classes", 3, image_size=32, patch_size=8)
    module = randomise(type(module)(module.config), 3)
    module.save_pretrained(tmp_path)
    inputs = (*size, module.config.num_channels)
    model, variables = models.load_pretrained(tmp_path, inputs=inputs)
    image = images(inputs)
    with torch.no_grad():
        want = module(theirs(image), interpolate_pos_encoding=True).logits
    assert_close(jit_predict(model)(variables, image), want)
    with pytest.raises(UsageError, match="patch = 8 must be at most"):
        models.load_pretrained(tmp_path, inputs=(7, 32, 3))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("grid", [(3, 3), (9, 4), (5, 14), (1, 1), (2, 40)])
def test_tables_are_resized_as_torch_does(grid: tuple[int, int], smooth: bool) -> None:
    """As transformers asks for it, and antialiased as timm does."""
    table = np.random.default_rng(0).normal(size=(1, 1 + 25, 6)).astype(np.float32)
    square = torch.tensor(table[:, 1:].reshape(1, 5, 5, 6).transpose(0, 3, 1, 2))
    want = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", antialias=smooth)
    got = ResizePositions(grid, 1, smooth)(table)
    np.testing.assert_array_equal(got[:, 0], table[:, 0])
    assert_close(got[0, 1:], want.numpy()[0].transpose(1, 2, 0).reshape(-1, 6))


def test_what_no_table_gives_is_refused(tmp_path: Path) -> None:
    """Positions of an oblong grid, on another one of as many patches too."""
    randomise(transformers.ViTForImageClassification(small(image_size=[8, 12])), 0).save_pretrained(tmp_path)
    for inputs in ((12, 8, 3), (16, 24, 3)):
        with pytest.raises(UsageError, match="positions of 2 x 3 patches cannot be resized to"):
            models.load_pretrained(tmp_path, inputs=inputs)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 10, 8), r"\(1, 10, 8\), not \(1, 5, 8\) as for an image of \(8, 8\)"),
        ((2, 5, 8), "not"),
        ((1, 5, 9), "not"),
    ],
)
def test_positions_amiss_are_refused_by_name(shape: tuple[int, ...], says: str, tmp_path: Path) -> None:
    """So are those of another grid than the folder's config gives, as in transformers, unless one is asked for."""
    module = transformers.ViTForImageClassification(small())
    module.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "vit.embeddings.position_embeddings"
    save_file({**tensors, name: np.zeros(shape, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=f"tensor {name!r} is .*{says}"):
        models.load_pretrained(tmp_path)


def test_what_is_left_of_an_image_is_not_seen(tmp_path: Path) -> None:
    """An image whose sides the patch does not divide."""
    module = randomise(transformers.ViTForImageClassification(small(image_size=[11, 8])), 0)
    module.save_pretrained(tmp_path)
    model, variables = models.load_pretrained(tmp_path)
    image = images((11, 8, 3))
    with torch.no_grad():
        assert_close(jit_predict(model)(variables, image), module(theirs(image)).logits)


def small(**more: Any) -> Any:
    """A config of theirs."""
    shape = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=12, num_labels=3)
    return transformers.ViTConfig(**{**shape, "image_size": 8, "patch_size": 4, **more})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(architectures=["ViTForMaskedImageModeling"]), "architecture of config.json"),
        (dict(use_mean_pooling=True), "use_mean_pooling = True: unknown"),
        (dict(patch_size=9), "patch = 9 must be at most the image's 8 x 8"),
        (dict(patch_size=2), "'vit.embeddings.position_embeddings' is"),
        (dict(hidden_act="quick_gelu"), "quick_gelu"),
        (dict(id2label={"0": "a"}), "'classifier.weight' is (3, 8), not (1, 8)"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(changes: dict, says: str, tmp_path: Path) -> None:
    transformers.ViTForImageClassification(small()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError) as refused:
        models.load_pretrained(tmp_path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_heads_are_taken_off_and_masks_refused(tmp_path: Path) -> None:
    """A classifier is read as a bare network, and without `architectures`; a file of masked images is refused."""
    module = randomise(transformers.ViTForImageClassification(small()), 0)
    module.save_pretrained(tmp_path)
    model, variables = models.load_pretrained(tmp_path, head="none", pool="none")
    image = images(model.config.inputs)
    with torch.no_grad():
        want = module.vit(theirs(image)).last_hidden_state
    assert_close(jit_predict(model)(variables, image), want)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "architectures"}))
    assert models.load_pretrained(tmp_path)[0].config.head == "classes"
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "vit.embeddings.mask_token": np.zeros((1, 1, 8), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="mask_token' is not part of this network"):
        models.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *(dict(pool="mean"), dict(position="patches"), dict(layer_scale=0.1), dict(head="none", pool="mean")),
        dict(drop_path=0.1),
    ],
)
def test_what_the_hub_has_no_form_for_is_not_written(change: dict, tmp_path: Path) -> None:
    model = models.build("vit", inputs=(8, 8, 3), patch=4, width=8, depth=1, heads=2, classes=3, **change)
    with pytest.raises(UsageError, match="a published vit with head"):
        models.save_pretrained(model, {}, tmp_path / "w")


# timm

TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(size=(32, 32), patch=(16, 16)),
    "vit_small_patch16_384": dict(size=(24, 8), patch=(8, 4)),
    "vit_base_patch16_224": dict(size=(16, 16), patch=(8, 8), pool="avg", fc_norm=True),
    "deit3_small_patch16_224": dict(size=(12, 12), patch=(4, 4), scale=True, embed_class=False),
    "vit_huge_patch14_gap_224": dict(size=(12, 12), patch=(4, 4), pool="avg", token=False, bias=False),
    "deit_tiny_patch16_224": dict(size=(8, 8), patch=(4, 4), classes=0),
}


@pytest.mark.parametrize(
    "name", [n if i in (0, 3) else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(TIMM)]
)
def test_networks_are_timms(name: str, tmp_path: Path) -> None:
    """Its names and config.json: what comes out, loss, the gradient of every parameter."""
    how = TIMM[name]
    module = randomise(Net(width=24, depth=2, heads=3, **how), 0)
    save_file({k: v.detach().numpy() for k, v in module.state_dict().items()}, tmp_path / "model.safetensors")
    pool, classes = how.get("pool", "token"), how.get("classes", 5)
    cfg = {"input_size": [3, *how["size"]], "mean": [0.5] * 3, "classifier": "head", "first_conv": "patch_embed.proj"}
    config = {"architecture": name, "num_classes": classes, "num_features": 24, "global_pool": pool}
    args = {"num_heads": 3, "embed_dim": 24, "depth": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": cfg, "model_args": args}))
    model, variables = models.load_pretrained(tmp_path)
    assert model.config.inputs == (*how["size"], 3)
    image = images(model.config.inputs)
    label = np.arange(3) % 5
    want = module(theirs(image))
    loss = torch.nn.functional.cross_entropy(want, torch.tensor(label)) if classes else (want**2).mean()
    loss.backward()
    (value, found), grads = jax.jit(jax.value_and_grad(lambda p: ours(model, p, image, label), has_aux=True))(
        variables["params"]
    )
    assert_close(value, loss.detach())
    assert_close(found, want.detach())
    named = {name: p.grad.numpy() for name, p in module.named_parameters()}
    assert_gradients(model, vit_timm, grads, named)
    fields = {name: value for name, value in vars(model.config).items() if value is not None}
    bare, again = pretrained.load("vit", tmp_path / "model.safetensors", **fields)
    np.testing.assert_array_equal(jit_predict(bare)(again, image), jit_predict(model)(variables, image))
    for key, says in ((dict(reg_tokens=4), "reg_tokens = 4: unknown"), (dict(pre_norm=True), "pre_norm")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": cfg, "model_args": args | key}))
        with pytest.raises(UsageError, match=says):
            models.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "global_pool": "map"}))
    with pytest.raises(UsageError, match="global_pool = 'map'"):
        models.load_pretrained(tmp_path)
