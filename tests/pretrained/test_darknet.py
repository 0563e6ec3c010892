"""Darknet's files: what OpenCV makes of the same ones, what is written back, and what is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import yolo
from errors import UsageError
from models import pretrained
from models.blocks.vision import detection_head
from models.blocks.vision.darknet import (
    Conv,
    Head,
    MaxPool,
    Reorg,
    Route,
    Shortcut,
    Upsample,
    reorg,
    run,
    sizes,
    upsample,
)
from models.core.batch_norm import batch_norm
from models.core.spec import flatten, unsharded
from models.pretrained.formats import darknet_cfg
from models.pretrained.formats.darknet_weights import Header
from models.pretrained.formats.darknet_weights import header as header_of
from models.pretrained.layouts import darknet
from tests.support.cases import CASES, random_variables, tiny_model
from tests.support.darknet_cfgs import CFGS, needs_cfgs

LAYERS = CASES["yolo"].fields["layers"]
FILES = {
    **{"yolov2": "yolov2", "yolov2-tiny-voc": "yolov2_tiny_voc", "yolov3": "yolov3", "yolov3-tiny": "yolov3_tiny"},
    "yolov3-spp": "yolov3_spp",
}
LONG = ("yolov2", "yolov3", "yolov3-spp")


def numbers(model: models.Model, seed: int = 0) -> bytes:
    """Numbers for a network, by which its outputs are neither tiny nor huge."""
    draw, parts = np.random.default_rng(seed), []
    for name, shape in darknet.array_shapes(model.config).items():
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
    files[0].write_text(darknet_cfg.to_text(model.config))
    files[1].write_bytes((header or Header()).bytes() + numbers(model))
    return files


# The published networks


@needs_cfgs
@pytest.mark.parametrize(("file", "size"), FILES.items())
def test_sizes_are_those_of_the_published_files(file: str, size: str, tmp_path: Path) -> None:
    """Layer by layer, anchors and thresholds too; and what is written of a Config is read as the same one."""
    model = darknet.read_cfg(CFGS / f"{file}.cfg")
    assert model == models.build("yolo", size=size, inputs=model.config.inputs)
    (tmp_path / "again.cfg").write_text(darknet_cfg.to_text(model.config))
    assert darknet.read_cfg(tmp_path / "again.cfg") == model


@needs_cfgs
@pytest.mark.parametrize("file", [pytest.param(f, marks=[pytest.mark.slow] if f in LONG else []) for f in FILES])
@pytest.mark.parametrize("plane", [(64, 96)])
def test_opencv_computes_the_same(file: str, plane: tuple[int, int], tmp_path: Path) -> None:
    """The raw maps and the boxes of each head, from the published .cfg at another, not square, size."""
    cv2 = pytest.importorskip("cv2")
    said = (CFGS / f"{file}.cfg").read_text()
    for key, value in (("height", plane[0]), ("width", plane[1]), ("thresh", 0)):  # none of v2's classes is left out
        said = re.sub(rf"(?m)^{key} *=.*", f"{key}={value}", said)
    (tmp_path / "net.cfg").write_text(said)
    header = Header(seen=32_013_312)
    content = header.bytes() + numbers(darknet.read_cfg(tmp_path / "net.cfg"))
    (tmp_path / "net.weights").write_bytes(content)
    model, variables = darknet.load(tmp_path / "net.cfg", tmp_path / "net.weights")
    image = np.random.default_rng(1).random((2, *plane, 3)).astype(np.float32)

    @jax.jit
    def run(variables: Any, image: Any) -> Any:
        value = model.predict(variables, image)
        return value.maps, detection_head.decode(value)

    maps, (boxes, scores, objects) = jax.device_get(run(variables, image))
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    net.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    heads = [at for at, layer in enumerate(model.config.layers) if isinstance(layer, Head)]
    for ours, theirs in zip(maps, net.forward([f"conv_{at - 1}" for at in heads]), strict=True):
        want = theirs.transpose(0, 2, 3, 1).reshape(ours.shape)
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4 * np.abs(want).max())
    found = net.forward(net.getUnconnectedOutLayersNames())
    rows = np.concatenate([np.reshape(x, (2, -1, x.shape[-1])) for x in found], 1)
    np.testing.assert_allclose(boxes, rows[..., :4], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(objects, rows[..., 4], rtol=1e-4, atol=1e-4)
    shown = rows[..., 5:] > 0  # it leaves out those below a threshold
    assert shown.mean() > 0.1
    np.testing.assert_allclose(np.where(shown, scores, 0), rows[..., 5:], rtol=1e-4, atol=1e-4)

    darknet.save(model, variables, tmp_path / "b.cfg", tmp_path / "b.weights", header=header)
    assert (tmp_path / "b.weights").read_bytes() == content


@pytest.mark.parametrize("names", ["bccd", *(f"bccd+{name}" for name in yolo.ABLATIONS)])
def test_what_configs_train_is_read_as_it_is_written(names: str, tmp_path: Path) -> None:
    """Of a region network those anchors that its head names, since Darknet's has no others."""
    said = yolo.get_config(names)
    fields = said.model.to_dict()
    model = models.build(fields.pop("family"), **fields, inputs=(*said.data.size, 3), classes=3)
    want, heads = model.config, [layer for layer in model.config.layers if isinstance(layer, Head)]
    if want.head == "region":
        want = dataclasses.replace(want, anchors=tuple(want.anchors[i] for i in heads[0].mask))
    (tmp_path / "a.cfg").write_text(darknet_cfg.to_text(model.config))
    assert darknet.read_cfg(tmp_path / "a.cfg").config == want


def test_a_region_network_writes_its_heads_anchors(tmp_path: Path) -> None:
    """In the head's order."""
    layers = (*CASES["yolo_region"].fields["layers"][:-1], Head((2, 0)))
    model = tiny_model("yolo_region", layers=layers, anchors=((2, 3), (5, 2), (4, 4)))
    (tmp_path / "a.cfg").write_text(darknet_cfg.to_text(model.config))
    assert darknet.read_cfg(tmp_path / "a.cfg") == tiny_model("yolo_region", anchors=((4, 4), (2, 3)))


@needs_cfgs
@pytest.mark.parametrize("file", ["vgg-16", "yolov1"])
def test_other_networks_are_read_as_sections(file: str) -> None:
    """Of which others may make what they can; no detector is made of them."""
    found = darknet_cfg.sections(CFGS / f"{file}.cfg")
    assert found[0].kind == "net"
    assert {"connected", "dropout"} < {section.kind for section in found}
    with pytest.raises(UsageError, match=rf"{file}.cfg:\d+: \[(crop|local)\] is no layer of a detector"):
        darknet.read_cfg(CFGS / f"{file}.cfg")


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


def test_a_route_takes_its_part_of_each_source() -> None:
    """Each source is parted, then they are joined."""
    x = jnp.arange(48, dtype=jnp.float32).reshape(1, 3, 4, 4)
    layers = (MaxPool(1, 1), MaxPool(3, 1), Route((1, 0, -2), 2, 1))
    found, _ = run(layers, {"params": {}, "stats": {}}, x, train=False, momentum=0.9, place=unsharded)
    parts = [one[..., 2:] for one in (found[1], found[0], found[0])]
    np.testing.assert_array_equal(found[2], np.concatenate(parts, -1))
    assert sizes(layers, (3, 4, 4), 8)[2] == (3, 4, 6)
    with pytest.raises(UsageError, match="layer 2 cannot split 3, 5 channels into 2"):
        sizes((Conv(3), Conv(5), Route((0, 1), 2)), (3, 4, 4), 8)


def test_opencv_computes_the_same_of_a_grouped_route(tmp_path: Path) -> None:
    """In the form of v4-tiny's blocks (Wang et al. 2020, arXiv:2011.08036): the second half of the channels before."""
    cv2 = pytest.importorskip("cv2")
    block = (Conv(8, stride=2), Route((-1,), 2, 1), Conv(4), Conv(4), Route((-1, -2)), Conv(8, 1), Route((-6, -1)))
    linear = Conv(None, 1, norm=False, activation="linear")
    model = tiny_model("yolo", layers=(*block, MaxPool(), linear, Head((0, 1, 2))))
    files = written(tmp_path, model)
    _, variables = darknet.load(*files)
    image = np.random.default_rng(1).random((2, *model.config.inputs)).astype(np.float32)
    net = cv2.dnn.readNetFromDarknet(*map(str, files))
    net.setInput(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
    want = net.forward(f"conv_{len(block) + 1}").transpose(0, 2, 3, 1)
    got = jax.jit(model.predict)(variables, image).maps[0].reshape(want.shape)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    ("layer", "given", "says"),
    [
        (Conv, (8, 3, 0), "stride = 0 must be positive"),
        (Conv, (8, -3), "size = -3 must be positive"),
        (Conv, (0,), "filters = 0 must be positive"),
        (Conv, (8, 3, 1, True, "leaky", -1), "padding = -1 must be 0 or more"),
        (Conv, (8, 3, 1, True, "foo"), "unknown value of darknet's activation 'foo'"),
        (MaxPool, (2, 0), "stride = 0 must be positive"),
        (Upsample, (0,), "stride = 0 must be positive"),
        (Reorg, (0,), "stride = 0 must be positive"),
        (Route, ((),), r"sources = \(\) must name a layer"),
        (Route, ((-1,), 0), "groups = 0 must be positive"),
        (Route, ((-1,), 2, -1), "group = -1 must be 0 or more"),
        (Route, ((-1,), 2, 2), "group = 2 must be below groups = 2"),
        (Shortcut, (-2, "foo"), "unknown value of darknet's activation 'foo'"),
        (Head, ((0, -1),), r"mask = \(0, -1\) must be 0 or more"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(layer: Any, given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        layer(*given)


@pytest.mark.parametrize("train", [False, True])
def test_the_deviation_plus_epsilon_divides(train: bool) -> None:
    """Outside the root, as Darknet has it; what runs moves to the unbiased variance, and a dead channel has a slope."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 3, 2, 4)).astype(np.float32) * np.array([1e-6, 1e-3, 1, 0], np.float32)
    stats = {"mean": np.zeros(4, np.float32), "var": np.array([1e-12, 1e-6, 1, 0], np.float32)}
    p = {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 0.5)}

    def run(x: jax.Array) -> Any:
        running = jax.tree.map(jnp.asarray, stats)
        return batch_norm(x, p, running, train=train, momentum=0.9, eps=1e-6, eps_outside_sqrt=True)

    @jax.jit
    def both(x: jax.Array) -> Any:
        return run(x), jax.grad(lambda x: jnp.sum(jnp.square(run(x)[0])))(x)

    (y, moved), slope = both(x)
    wide = x.astype(np.float64).reshape(-1, 4)
    mean, var = (wide.mean(0), wide.var(0)) if train else (stats["mean"], stats["var"])
    np.testing.assert_allclose(y, 2 * (x - mean) / (np.sqrt(var) + 1e-6) + 0.5, rtol=1e-4, atol=1e-5)
    want = 0.9 * stats["var"] + 0.1 * wide.var(0, ddof=1) if train else stats["var"]
    np.testing.assert_allclose(moved["var"], want, rtol=1e-5)
    assert np.isfinite(slope).all()


# Numbers


@pytest.mark.parametrize("header", [Header(0, 1, 0, 77), Header(0, 2, 5, 2**40)])
@pytest.mark.parametrize("name", ["yolo", "yolo_region"])
def test_both_files_are_written_back(header: Header, name: str, tmp_path: Path) -> None:
    """Bit by bit, with the header; all kinds of layers, and the old header of four integers."""
    files = written(tmp_path, tiny_model(name), header)
    model, variables = darknet.load(*files)
    assert model == tiny_model(name)
    assert {k: v.shape for k, v in flatten(variables).items()} == {k: s.shape for k, s in flatten(model.specs).items()}
    assert header_of(files[1]) == header
    again = tmp_path / "again.cfg", tmp_path / "again.weights"
    darknet.save(model, variables, *again, header=header)
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(files, again, strict=True)] == [True, True]


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """In one line: by how many numbers, and at which layer; and where a cutoff would do, which."""
    model = tiny_model("yolo")
    config, weights = written(tmp_path, model)
    whole, sizes = weights.read_bytes(), darknet.array_shapes(model.config)
    first = sum(int(np.prod(s)) for name, s in sizes.items() if name.split(".")[0] in ("0", "1"))
    for content, says in (
        (whole[:10], "has 10 bytes, fewer than the header"),
        (whole[:16], "has 16 bytes, fewer than the header"),
        (whole[:-2], "bytes after the header are not a multiple of 4"),
        (whole[:-20], "is 5 values too short: it ends in layer 14$"),
        (whole + whole[-12:], "has 3 values more than the network up to layer 15 needs$"),
        (
            whole[: 20 + 4 * first],
            "ends in layer 4; it has the first layers, which cutoff=2 reads",
        ),
    ):
        weights.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            darknet.load(config, weights)
    with pytest.raises(UsageError, match="cannot be read"):
        darknet.load(config, tmp_path / "none.weights")
    with pytest.raises(UsageError, match="cutoff = 99 must be from 1 to 16"):
        darknet.load(config, weights, cutoff=99)


def test_the_first_layers_may_have_no_numbers(tmp_path: Path) -> None:
    """Then a file of them that has some is too long; of a whole file they are what is asked for."""
    layers = (MaxPool(2, 1), Conv(None, 1, norm=False, activation="linear"), Head((0, 1, 2)))
    config, weights = written(tmp_path, tiny_model("yolo", layers=layers))
    with pytest.raises(UsageError, match=r"96 values more than the network up to layer 0 needs; .* cutoff=2 reads"):
        darknet.load(config, weights.rename(tmp_path / "net.conv.1"))
    darknet.load(config, tmp_path / "net.conv.1", cutoff=1)
    weights.write_bytes(Header().bytes())
    darknet.load(config, weights, cutoff=1)


def test_the_first_layers_are_read_alone(tmp_path: Path) -> None:
    """A cutoff or the file's name says how many; the others are drawn. `pretrained.find` has those of the file."""
    config, weights = written(tmp_path, tiny_model("yolo"))
    model, whole = darknet.load(config, weights)
    sizes = darknet.array_shapes(model.config)
    first = sum(int(np.prod(s)) for name, s in sizes.items() if int(name.split(".")[0]) < 5)
    part = tmp_path / "net.conv.5"
    part.write_bytes(weights.read_bytes()[: 20 + 4 * first])
    fresh = model.init(jax.random.key(3))
    for file, how in ((part, {"cutoff": 5}), (part, {}), (weights, {"cutoff": 5})):
        _, found = darknet.load(config, file, seed=3, **how)
        for path, leaf in flatten(found).items():
            source = whole if int(path.split("/")[2]) < 5 else fresh
            np.testing.assert_array_equal(leaf, flatten(source)[path])
    assert pretrained.is_pretrained(part)
    assert pretrained.is_pretrained(weights)
    assert {int(path.split("/")[-2 - ("norm" in path)]) for path in pretrained.find(model, part).shapes()} == {0, 1, 4}
    for path, leaf in flatten(pretrained.find(model, weights).variables()).items():
        np.testing.assert_array_equal(leaf, flatten(whole)[path])
    with pytest.raises(UsageError, match=r"are published as NAME.weights or NAME.conv.N"):
        pretrained.find(model, tmp_path / "net.safetensors")


# A Config


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"inputs": (15, 8, 3)}, r"inputs = \(15, 8, 3\) must be sides that 4 divides"),
        ({"inputs": (8, 8)}, "must be three numbers"),
        (
            {"layers": LAYERS[:6]},
            "layers = .* must be of Darknet, with a head that has anchors",
        ),
        (
            {"layers": (*LAYERS[:2], Head((0, 1)))},
            "layer 2, .*, gets 8 channels instead of 2 x 8",
        ),
        ({"layers": (Conv(None), Conv(None), Head((0,)))}, "layer 0 needs a number of filters"),
        ({"anchors": ((2, 3),)}, r"anchors = .* must be those that heads name, \[0, 1, 2\]"),
        ({"anchors": ((2, 3), (0, 1), (1, 1))}, "anchors = .* must be pairs of positive numbers"),
        ({"anchors": ((2, 3), (1, float("nan")), (1, 1))}, "anchors = .* is not of type .* within float32"),
        ({"anchors": ()}, r"anchors = \(\) must be those that heads name"),
        ({"layers": ()}, r"layers = \(\) must be of Darknet"),
        ({"inputs": ()}, r"inputs = \(\) must be three numbers"),
        ({"head": "region"}, "head = 'region' must be yolo where several layers are heads"),
        ({"head": "yolov9"}, "unknown value of yolo's head 'yolov9'"),
        ({"layers": ("conv",)}, "layers = .* is not of type"),
        ({"ignore_thresh": 2.0}, "ignore_thresh = 2.0 must be from 0 to 1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tiny_model("yolo", **fields)


def test_an_image_of_another_size_is_refused() -> None:
    model = tiny_model("yolo")
    with pytest.raises(UsageError, match=r"inputs = \(16, 8, 3\) must be the size of the image, \(8, 8, 3\)"):
        model.predict(random_variables(model), jnp.zeros((1, 8, 8, 3)))
