"""Darknet's files: what OpenCV makes of the same ones, what is written back, and what is refused."""

import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models import grids, published
from models.darknet import Conv, Head, reorg, upsample
from models.layers import batch_norm
from models.published import cfg, darknet, vgg_darknet
from models.published.weights import Header
from models.published.weights import header as header_of
from models.spec import flatten
from tests.harness import TINY, tiny

ASSETS = Path(os.environ.get("DARKNET_CFG_DIR", Path(__file__).parents[2] / "shared" / "assets" / "darknet"))
there = pytest.mark.skipif(not ASSETS.exists(), reason="DARKNET_CFG_DIR, of Darknet's published .cfg files, is not set")
FILES = {
    **{"yolov2": "yolov2", "yolov2-tiny-voc": "yolov2_tiny_voc", "yolov3": "yolov3", "yolov3-tiny": "yolov3_tiny"},
    "yolov3-spp": "yolov3_spp",
}
LONG = ("yolov2", "yolov3", "yolov3-spp")


def numbers(model: models.Model, seed: int = 0) -> bytes:
    """Numbers for a network, by which its outputs are neither tiny nor huge."""
    draw, parts = np.random.default_rng(seed), []
    for name, shape in darknet.tensors_of(model.config).items():
        kind = name.split(".")[1]
        x = draw.normal(size=shape)
        made = {
            "biases": 0.3 * x,
            "scales": 0.7 + 0.1 * x,
            "means": 0.3 * x,
            "variances": np.exp(0.3 * x),
            "weights": x / np.sqrt(np.prod(shape[1:])),
        }
        parts.append(made[kind].astype("<f4").tobytes())
    return b"".join(parts)


def written(folder: Path, model: models.Model, header: Header | None = None) -> tuple[Path, Path]:
    """Both files of a network: what it is, and some numbers."""
    files = folder / "net.cfg", folder / "net.weights"
    files[0].write_text(cfg.text(model.config))
    files[1].write_bytes((header or Header()).bytes() + numbers(model))
    return files


# The published networks


@there
@pytest.mark.parametrize(("file", "size"), FILES.items())
def test_sizes_are_those_of_the_published_files(file: str, size: str, tmp_path: Path) -> None:
    """Layer by layer, anchors and thresholds too; and what is written of a Config is read as the same one."""
    model = darknet.read_cfg(ASSETS / f"{file}.cfg")
    assert model == models.build("yolo", size=size, inputs=model.config.inputs)
    (tmp_path / "again.cfg").write_text(cfg.text(model.config))
    assert darknet.read_cfg(tmp_path / "again.cfg") == model


@there
@pytest.mark.parametrize("file", [pytest.param(f, marks=[pytest.mark.slow] if f in LONG else []) for f in FILES])
@pytest.mark.parametrize("plane", [(64, 96)])
def test_opencv_computes_the_same(file: str, plane: tuple[int, int], tmp_path: Path) -> None:
    """The raw maps and the boxes of each head, from the published .cfg at another, not square, size."""
    cv2 = pytest.importorskip("cv2")
    said = (ASSETS / f"{file}.cfg").read_text()
    for key, value in (("height", plane[0]), ("width", plane[1]), ("thresh", 0)):  # none of v2's classes is left out
        said = re.sub(rf"(?m)^{key} *=.*", f"{key}={value}", said)
    (tmp_path / "net.cfg").write_text(said)
    header = Header(seen=32_013_312)
    content = header.bytes() + numbers(darknet.read_cfg(tmp_path / "net.cfg"))
    (tmp_path / "net.weights").write_bytes(content)
    model, variables = darknet.load(tmp_path / "net.cfg", tmp_path / "net.weights")
    image = np.random.default_rng(1).random((2, *plane, 3)).astype(np.float32)
    value = jax.jit(model.predict)(variables, image)

    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    net.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    heads = [at for at, layer in enumerate(model.config.layers) if isinstance(layer, Head)]
    for ours, theirs in zip(value.maps, net.forward([f"conv_{at - 1}" for at in heads]), strict=True):
        want = theirs.transpose(0, 2, 3, 1).reshape(ours.shape)
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4 * np.abs(want).max())
    found = net.forward(net.getUnconnectedOutLayersNames())
    rows = np.concatenate([np.reshape(x, (2, -1, x.shape[-1])) for x in found], 1)
    boxes, scores, objects = grids.decoded(value)
    np.testing.assert_allclose(boxes, rows[..., :4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(objects, rows[..., 4], rtol=1e-4, atol=1e-4)
    shown = rows[..., 5:] > 0  # it leaves out those below a threshold
    assert shown.mean() > 0.1
    np.testing.assert_allclose(np.where(shown, scores, 0), rows[..., 5:], rtol=1e-4, atol=1e-4)

    darknet.save(model, variables, tmp_path / "b.cfg", tmp_path / "b.weights", header=header)
    assert (tmp_path / "b.weights").read_bytes() == content


@there
@pytest.mark.parametrize("file", ["vgg-16", "yolov1"])
def test_other_networks_are_read_as_sections(file: str) -> None:
    """Of which others may make what they can; no detector is made of them."""
    found = cfg.sections(ASSETS / f"{file}.cfg")
    assert found[0].kind == "net"
    assert {"connected", "dropout"} < {section.kind for section in found}
    with pytest.raises(UsageError, match=rf"{file}.cfg:\d+: \[(crop|local)\] is no layer of a detector here"):
        darknet.read_cfg(ASSETS / f"{file}.cfg")


# Layers


@pytest.mark.parametrize(("shape", "stride"), [((2, 4, 6, 8), 2), ((1, 3, 9, 18), 3)])
def test_reorg_is_darknets_loop(shape: tuple[int, ...], stride: int) -> None:
    """Not a space-to-depth: numbers change places as Darknet's indices say."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    B, Y, X, C = shape
    flat, want = x.transpose(0, 3, 1, 2).reshape(B, -1), np.zeros((B, Y * X * C), np.float32)
    for k in range(C):
        part, place = k % (C // stride**2), k // (C // stride**2)
        for row in range(Y):
            for column in range(X):
                there = X * stride * (row * stride + place // stride + Y * stride * part)
                want[:, column + X * (row + Y * k)] = flat[:, column * stride + place % stride + there]
    want = want.reshape(B, C * stride**2, Y // stride, X // stride).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(reorg(jnp.asarray(x), stride), want)


def test_upsample_repeats_pixels() -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 3, 2)
    np.testing.assert_array_equal(upsample(jnp.asarray(x), 2), x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("train", [False, True])
def test_the_deviation_plus_epsilon_divides(train: bool) -> None:
    """Outside the root, as Darknet has it; what runs moves to the unbiased variance, and a dead channel has a slope."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 2, 4)).astype(np.float32) * np.array([1e-6, 1e-3, 1, 0], np.float32)
    stats = {"mean": np.zeros(4, np.float32), "var": np.array([1e-12, 1e-6, 1, 0], np.float32)}
    p = {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 0.5)}

    def run(x: jax.Array) -> Any:
        running = jax.tree.map(jnp.asarray, stats)
        return batch_norm(x, p, running, train=train, momentum=0.9, eps=1e-6, outside=True)

    y, moved = run(jnp.asarray(x))
    wide = x.astype(np.float64).reshape(-1, 4)
    mean, var = (wide.mean(0), wide.var(0)) if train else (stats["mean"], stats["var"])
    np.testing.assert_allclose(y, 2 * (x - mean) / (np.sqrt(var) + 1e-6) + 0.5, rtol=1e-4, atol=1e-5)
    want = 0.9 * stats["var"] + 0.1 * wide.var(0, ddof=1) if train else stats["var"]
    np.testing.assert_allclose(moved["var"], want, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(jnp.square(run(x)[0])))(jnp.asarray(x))).all()


# Mistakes in a .cfg

HEAD = "filters=16\nsize=1\nactivation=linear\n\n[yolo]\nanchors=2,3,4,5\nnum=2\nclasses=3\n"
GOOD = f"[net]\nheight=8\nwidth=8\nchannels=3\n\n[convolutional]\n{HEAD}"


def test_a_small_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text("# a comment\n" + GOOD.replace("size=1", " size = 1 "))
    model = darknet.read_cfg(tmp_path / "a.cfg", inputs=(16, 8, 3))
    assert model.config.layers == (Conv(None, 1, norm=False, activation="linear"), Head((0, 1)))
    assert (model.config.inputs, model.config.anchors, model.config.ignore) == ((16, 8, 3), ((2, 3), (4, 5)), 0.5)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[convolutional]", "[convolutionall]", "a.cfg:6: unknown section 'convolutionall'; did you mean"),
        ("[net]", "[convolutional]", "a.cfg must begin with .net."),
        ("[net]\n", "", "a.cfg:1: height stands before the first section"),
        ("size=1", "size", "a.cfg:8: 'size' is no setting"),
        ("size=1", "size=one", "a.cfg:8: size = one is no whole number"),
        ("size=1", "size=0", "a.cfg:8: size = 0 must be 1 or more"),
        ("size=1", "size=1\nsize=3", r"a.cfg:9: \[convolutional\] has size already, in line 8"),
        ("size=1", "sise=1", r"a.cfg:8: unknown setting of \[convolutional\] 'sise'; did you mean 'size'"),
        ("size=1", "size=1\ngroups=2", r"a.cfg:9: \[convolutional\] is followed only with groups = 1"),
        ("linear", "swish", "a.cfg:9: unknown activation 'swish'"),
        ("filters=16", "filters=24", "a.cfg:6: filters = 24 must be 16, for the head after it"),
        ("width=8\n", "", r"a.cfg:1: \[net\] must have height, width and channels"),
        ("[yolo]", "[upsample]\n[shortcut]\nfrom=-2\n[yolo]", "a.cfg:12: layer 2, .*, gets outputs of different sizes"),
        ("[yolo]", "[reorg]\nstride=3\n[yolo]", "a.cfg:11: layer 1 cannot make channels of 3 x 3 pixels"),
        ("num=2", "num=3", "a.cfg:11: num = 3 anchors are 6 numbers; there are 4"),
        ("num=2", "num=2\nmask=1,2", "a.cfg:14: mask must name anchors from 0 to 1"),
        ("anchors=2,3,4,5\n", "", r"a.cfg:11: \[yolo\] must have anchors"),
        ("classes=3", "classes=3\nscale_x_y=1.05", r"a.cfg:15: \[yolo\] is followed only with scale_x_y = 1"),
        ("[yolo]", "[route]\nlayers=-2\n\n[yolo]", "a.cfg:12: layer 1 can take those from -1 to 0, not -2"),
        ("[yolo]", "[dropout]\n\n[yolo]", r"a.cfg:11: \[dropout\] is no layer of a detector here"),
        ("[yolo]", "[region]", r"a.cfg:11: \[region\] is followed only with softmax = 1"),
        (
            "[yolo]",
            "[maxpool]\nsize=2\npadding=0\n\n[yolo]",
            "a.cfg:13: .* only with padding = size - 1 = 1, not 0",
        ),
        ("[yolo]", "[upsample]\nstride=x\n\n[yolo]", "a.cfg:12: stride = x is no whole number"),
    ],
)
def test_a_mistake_in_a_cfg_is_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=says) as found:
        darknet.read_cfg(tmp_path / "a.cfg")
    assert "\n" not in str(found.value)


def test_heads_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(GOOD + "\n[convolutional]\n" + HEAD.replace("classes=3", "classes=4"))
    with pytest.raises(UsageError, match=r"a.cfg:21: all heads must agree, and this one differs .* in classes"):
        darknet.read_cfg(tmp_path / "a.cfg")
    (tmp_path / "a.cfg").write_text(GOOD.split("[yolo]")[0])
    with pytest.raises(UsageError, match="is no detector: it has neither"):
        darknet.read_cfg(tmp_path / "a.cfg")
    with pytest.raises(UsageError, match="cannot be read"):
        darknet.read_cfg(tmp_path / "b.cfg")


# Numbers


@pytest.mark.parametrize("header", [Header(0, 1, 0, 77), Header(0, 2, 5, 2**40)])
@pytest.mark.parametrize("name", ["yolo", "yolo_region"])
def test_both_files_are_written_back(header: Header, name: str, tmp_path: Path) -> None:
    """Bit by bit, with the header; all kinds of layers, and the old header of four integers."""
    files = written(tmp_path, tiny(name), header)
    model, variables = darknet.load(*files)
    assert model == tiny(name, momentum=model.config.momentum)
    assert {k: v.shape for k, v in flatten(variables).items()} == {k: s.shape for k, s in flatten(model.specs).items()}
    assert header_of(files[1]) == header
    again = tmp_path / "again.cfg", tmp_path / "again.weights"
    darknet.save(model, variables, *again, header=header)
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(files, again, strict=True)] == [True, True]


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """In one line: by how many numbers, and at which layer; and where a cutoff would do, which."""
    model = tiny("yolo")
    config, weights = written(tmp_path, model)
    whole, sizes = weights.read_bytes(), darknet.tensors_of(model.config)
    first = sum(int(np.prod(s)) for name, s in sizes.items() if name.split(".")[0] in ("0", "1"))
    for content, says in (
        (whole[:10], "has 10 bytes, less than the header"),
        (whole[:16], "has 16 bytes, less than the header"),
        (whole[:-2], "bytes after the header are no float32 numbers"),
        (whole[:-20], "is 5 numbers too short: it ends before layer 14 is whole$"),
        (whole + whole[-12:], "holds 3 numbers more than the network takes up to layer 14$"),
        (
            whole[: 20 + 4 * first],
            "ends before layer 4 is whole; it holds the first layers, which cutoff=2 reads",
        ),
    ):
        weights.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            darknet.load(config, weights)
    with pytest.raises(UsageError, match="cannot be read"):
        darknet.load(config, tmp_path / "none.weights")
    with pytest.raises(UsageError, match="cutoff = 99 must be from 1 to 16"):
        darknet.load(config, weights, cutoff=99)


def test_the_first_layers_are_read_alone(tmp_path: Path) -> None:
    """By a cutoff, or by the name of the file; what is not there is drawn, and told by `published.find`."""
    config, weights = written(tmp_path, tiny("yolo"))
    model, whole = darknet.load(config, weights)
    sizes = darknet.tensors_of(model.config)
    first = sum(int(np.prod(s)) for name, s in sizes.items() if int(name.split(".")[0]) < 5)
    part = tmp_path / "net.conv.5"
    part.write_bytes(weights.read_bytes()[: 20 + 4 * first])
    fresh = model.init(jax.random.key(3))
    for how in ({"cutoff": 5}, {}):
        _, found = darknet.load(config, part, seed=3, **how)
        for path, leaf in flatten(found).items():
            source = whole if int(path.split("/")[2]) < 5 else fresh
            np.testing.assert_array_equal(leaf, flatten(source)[path])
    assert published.is_published(part)
    assert published.is_published(weights)
    assert {int(path.split("/")[-2 - ("norm" in path)]) for path in published.find(model, part).shapes()} == {0, 1, 4}
    for path, leaf in flatten(published.find(model, weights).variables()).items():
        np.testing.assert_array_equal(leaf, flatten(whole)[path])
    with pytest.raises(UsageError, match=r"are published as NAME.weights or NAME.conv.N"):
        published.find(model, tmp_path / "net.safetensors")


# A Config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"inputs": (15, 8, 3)}, r"inputs = \(15, 8, 3\) must be sides that 4 divides"),
        ({"inputs": (8, 8)}, "must be three numbers"),
        ({"layers": TINY["yolo"]["layers"][:6]}, "layers = .* must be of Darknet, with a head that has anchors"),
        ({"layers": (*TINY["yolo"]["layers"][:2], Head((0, 1)))}, "layer 2, .*, gets 8 channels instead of 2 x 8"),
        ({"layers": (Conv(None), Conv(None), Head((0,)))}, "layer 0 must say its filters"),
        ({"anchors": ((2, 3),)}, r"anchors = .* must be those that heads name, \[0, 1, 2\]"),
        ({"anchors": ((2, 3), (0, 1), (1, 1))}, "anchors = .* must be pairs of positive numbers"),
        ({"head": "yolov9"}, "unknown value of yolo's head 'yolov9'"),
        ({"layers": ("conv",)}, "layers = .* is not of type"),
        ({"ignore": 2.0}, "ignore = 2.0 must be from 0 to 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tiny("yolo", **fields)


def test_an_image_of_another_size_is_refused() -> None:
    model = tiny("yolo")
    with pytest.raises(UsageError, match=r"inputs = \(16, 8, 3\) must be the size of the image, \(8, 8, 3\)"):
        model.predict(model.init(jax.random.key(0)), jnp.zeros((1, 8, 8, 3)))


# VGG-16


@there
def test_opencv_computes_the_same_vgg(tmp_path: Path) -> None:
    """The published .cfg, narrower and without the crop of what is read: the probabilities of OpenCV's network."""
    cv2 = pytest.importorskip("cv2")
    said = re.sub(r"(?s)\[crop\].*?(?=\[conv)", "", (ASSETS / "vgg-16.cfg").read_text())
    said = re.sub(r"(height|width)=256", r"\1=64", said)
    for kind, of in (("filters", 16), ("output", 64)):
        said = re.sub(rf"{kind}=(\d+)", lambda m, kind=kind, of=of: f"{kind}={max(8, int(m[1]) // of)}", said)
    config = dict(channels=(8, 8, 16, 32, 32), pool=2, hidden=(64, 64), classes=15, dropout=0.0)
    model = models.build("vgg", size="vgg16", **config)
    draw, parts = np.random.default_rng(0), []
    for row in vgg_darknet.rows(model.config):
        fan_in = int(np.prod(row.shape[1:])) if len(row.shape) > 1 else 100
        parts.append((draw.normal(size=row.shape) * (2 / fan_in) ** 0.5).astype("<f4").tobytes())
    (tmp_path / "net.cfg").write_text(said)
    (tmp_path / "net.weights").write_bytes(Header().bytes() + b"".join(parts))
    variables = published.find(model, tmp_path / "net.weights").variables()
    images = draw.random((2, 64, 64, 3)).astype(np.float32)
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    net.setInput(images.transpose(0, 3, 1, 2))
    got = jax.nn.softmax(model.predict(variables, images))
    np.testing.assert_allclose(got, net.forward().reshape(got.shape), rtol=1e-4, atol=1e-6)


def test_darknet_has_no_vgg_with_batch_norm(tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(Header().bytes())
    with pytest.raises(UsageError, match="norm = 'batch' has no place in Darknet's files"):
        published.find(models.build("vgg", size="vgg11_bn"), tmp_path / "net.weights")
