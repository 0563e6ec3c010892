"""VGG in Darknet's files: what OpenCV makes of the same ones, and what is refused."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import models
from errors import UsageError
from models import pretrained
from models.pretrained.formats.darknet_weights import Header
from models.pretrained.layouts import vgg_darknet
from tests.support.darknet_cfgs import CFGS, needs_cfgs


@needs_cfgs
def test_opencv_computes_the_same_vgg(tmp_path: Path) -> None:
    """The published .cfg, narrower and without the crop of what is read: the probabilities of OpenCV's network."""
    cv2 = pytest.importorskip("cv2")
    said = re.sub(r"(?s)\[crop\].*?(?=\[conv)", "", (CFGS / "vgg-16.cfg").read_text())
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
    variables = pretrained.find(model, tmp_path / "net.weights").variables()
    images = draw.random((2, 64, 64, 3)).astype(np.float32)
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    net.setInput(images.transpose(0, 3, 1, 2))
    got = jax.nn.softmax(model.predict(variables, images))
    np.testing.assert_allclose(got, net.forward().reshape(got.shape), rtol=1e-4, atol=1e-6)


def test_darknet_has_no_vgg_with_batch_norm(tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(Header().bytes())
    with pytest.raises(UsageError, match="norm = 'batch' must be 'none' for Darknet's files"):
        pretrained.find(models.build("vgg", size="vgg11_bn"), tmp_path / "net.weights")
