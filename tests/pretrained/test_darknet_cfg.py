"""Darknet's .cfg files: what is read of one, and mistakes, each by its line."""

from pathlib import Path

import pytest

from errors import UsageError
from models.blocks.vision.darknet import Conv, Head
from models.pretrained.formats import darknet_cfg
from models.pretrained.layouts import darknet
from tests.support.cases import tiny_model

HEAD = "filters=16\nsize=1\nactivation=linear\n\n[yolo]\nanchors=2,3,4,5\nnum=2\nclasses=3\n"
GOOD = f"[net]\nheight=8\nwidth=8\nchannels=3\n\n[convolutional]\n{HEAD}"


def test_a_small_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text("# a comment\n" + GOOD.replace("size=1", " size = 1 "))
    model = darknet.read_cfg(tmp_path / "a.cfg", inputs=(16, 8, 3))
    assert model.config.layers == (Conv(None, 1, norm=False, activation="linear"), Head((0, 1)))
    assert (model.config.inputs, model.config.anchors) == ((16, 8, 3), ((2, 3), (4, 5)))
    assert model.config.ignore_thresh == 0.5
    assert model.config.momentum == 0.99  # which no file says, and Darknet has in its code


def test_comments_stand_anywhere_in_any_encoding(tmp_path: Path) -> None:
    said = GOOD.replace("size=1", "size=1 # one").replace("[yolo]", "[yolo] ; a head").replace(",5\n", ",5,\n")
    (tmp_path / "a.cfg").write_text(GOOD)
    (tmp_path / "b.cfg").write_bytes("\ufeff# ".encode() + "größe\n".encode("latin-1") + said.encode())
    assert darknet.read_cfg(tmp_path / "b.cfg") == darknet.read_cfg(tmp_path / "a.cfg")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[convolutional]", "[convolutionall]", "a.cfg:6: unknown section 'convolutionall'; did you mean"),
        ("[net]", "[convolutional]", "a.cfg must begin with .net."),
        ("[net]\n", "", "a.cfg:1: height is set before the first section"),
        ("size=1", "size", "a.cfg:8: 'size' is no setting"),
        ("size=1", "size=one", "a.cfg:8: size = one must be an integer"),
        ("size=1", "size=0", "a.cfg:8: size = 0 must be 1 or more"),
        ("size=1", "sise=1", r"a.cfg:8: unknown setting of \[convolutional\] 'sise'; did you mean 'size'"),
        ("size=1", "size=1\ngroups=2", r"a.cfg:9: \[convolutional\] is supported only with groups = 1"),
        ("linear", "swish", "a.cfg:9: unknown activation 'swish'"),
        ("filters=16", "filters=24", "a.cfg:6: filters = 24 must be 16, for the head after it"),
        ("width=8\n", "", r"a.cfg:1: \[net\] must have height, width and channels"),
        ("[yolo]", "[upsample]\n[shortcut]\nfrom=-2\n[yolo]", "a.cfg:12: layer 2, .*, gets outputs of different sizes"),
        ("[yolo]", "[reorg]\nstride=3\n[yolo]", "a.cfg:11: layer 1 cannot make channels of 3 x 3 pixels"),
        ("num=2", "num=3", "a.cfg:11: num = 3 anchors need 6 numbers, not 4"),
        ("num=2", "num=2\nmask=1,2", "a.cfg:14: mask must name anchors from 0 to 1"),
        ("anchors=2,3,4,5\n", "", r"a.cfg:11: \[yolo\] must have anchors"),
        ("classes=3", "classes=3\nscale_x_y=1.05", r"a.cfg:15: \[yolo\] is supported only with scale_x_y = 1"),
        ("classes=3", "classes=3\nnew_coords=1", r"a.cfg:15: \[yolo\] is supported only with new_coords = 0"),
        (
            "classes=3",
            "classes=3\nnms_kind=diounms",
            "a.cfg:15: nms_kind = diounms is not supported; legal: default, greed",
        ),
        ("size=1", "si" + "z" * 5000, r"a.cfg:8: 'siz+\.\.\.z+' is no setting"),
        ("[yolo]", "[route]\nlayers=-2\n\n[yolo]", "a.cfg:12: layer 1 can take layers from -1 to 0, not -2"),
        ("[yolo]", "[dropout]\n\n[yolo]", r"a.cfg:11: \[dropout\] is no layer of a detector"),
        ("[yolo]", "[region]", r"a.cfg:11: \[region\] is supported only with softmax = 1"),
        (
            "[yolo]",
            "[maxpool]\nsize=2\npadding=0\n\n[yolo]",
            "a.cfg:13: .* only with padding = size - 1 = 1, not 0",
        ),
        ("[yolo]", "[upsample]\nstride=x\n\n[yolo]", "a.cfg:12: stride = x must be an integer"),
        ("[yolo]", "[shortcut]\nfrom=-1,-1\n\n[yolo]", r"a.cfg:12: \[shortcut\] adds one layer, not 2"),
        ("[yolo]", "[route]\nlayers=-1\ngroups=3\n\n[yolo]", "a.cfg:11: layer 1 cannot split 16 channels into 3"),
        ("[yolo]", "[route]\nlayers=-1\ngroup_id=1\n\n[yolo]", "a.cfg:11: .* group = 1 must be below groups = 1"),
        ("[yolo]", "[maxpool]\nstride=3\n\n[yolo]", "a.cfg:2: height = 8 must be a multiple of 3"),
        ("=2,3,4,5", "=nan,3,4,5", "a.cfg:12: anchors = nan,3,4,5 must be positive"),
        ("=2,3,4,5", "=2,3,-4,5", "a.cfg:12: anchors = 2,3,-4,5 must be positive"),
        ("num=2", "num=2\nignore_thresh=nan", "a.cfg:14: ignore_thresh = nan must be from 0 to 1"),
    ],
)
def test_a_mistake_in_a_cfg_is_one_line(old: str, new: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=says) as found:
        darknet.read_cfg(tmp_path / "a.cfg")
    assert "\n" not in str(found.value)


def test_the_first_of_equal_keys_holds(tmp_path: Path) -> None:
    """As Darknet's option_find has it, in every section; only a line feed or a carriage return ends a line."""
    (tmp_path / "a.cfg").write_text(GOOD)
    twice = GOOD.replace("[net]\n", "[net]\nbatch=1\n# one\u2028line\nbatch=64\n").replace(
        "width=8", "width=8\nwidth=16"
    )
    (tmp_path / "b.cfg").write_bytes(
        twice.replace("size=1", "size=1\r\nsize=3").replace("num=2", "num=2\nnum=9").encode()
    )
    assert darknet.read_cfg(tmp_path / "b.cfg") == darknet.read_cfg(tmp_path / "a.cfg")


def test_how_darknet_trains_is_passed_over(tmp_path: Path) -> None:
    """Settings by which only the training differs: of the network, and of any layer."""
    said = GOOD.replace("width=8", "width=8\nletter_box=1\nflip=0").replace("size=1", "size=1\nstopbackward=1")
    (tmp_path / "a.cfg").write_text(GOOD)
    (tmp_path / "b.cfg").write_text(said.replace("num=2", "num=2\njitter=.3\nonlyforward=1"))
    assert darknet.read_cfg(tmp_path / "b.cfg") == darknet.read_cfg(tmp_path / "a.cfg")
    of_loss = "iou_loss=ciou\niou_normalizer=0.07\ncls_normalizer=1.0\niou_thresh=0.2\nmax_delta=5\nscale_x_y=1.0\n"
    suppression = "nms_kind=greedynms\nbeta_nms=0.6\n"
    (tmp_path / "b.cfg").write_text(GOOD.replace("num=2\n", f"num=2\n{of_loss}{suppression}"))
    assert darknet.read_cfg(tmp_path / "b.cfg") == darknet.read_cfg(tmp_path / "a.cfg")
    text = darknet_cfg.to_text(tiny_model("yolo_region").config)
    (tmp_path / "c.cfg").write_text(text.replace("rescore=1\n", "rescore=0\nmask_scale=1\n"))
    assert darknet.read_cfg(tmp_path / "c.cfg") == tiny_model("yolo_region")


def test_heads_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.cfg").write_text(GOOD + "\n[convolutional]\n" + HEAD.replace("classes=3", "classes=4"))
    with pytest.raises(UsageError, match=r"a.cfg:21: all heads must agree; this one differs .* in classes"):
        darknet.read_cfg(tmp_path / "a.cfg")
    two = 2 * tuple(darknet_cfg.to_text(tiny_model("yolo_region").config).partition("[convolutional]")[1:])
    (tmp_path / "a.cfg").write_text("".join(("[net]\nheight=64\nwidth=64\nchannels=3\n\n", *two)))
    with pytest.raises(UsageError, match=r"a.cfg:\d+: \[region\] must be the only head"):
        darknet.read_cfg(tmp_path / "a.cfg")
    (tmp_path / "a.cfg").write_text(GOOD.split("[yolo]")[0])
    with pytest.raises(UsageError, match="is no detector: it has neither"):
        darknet.read_cfg(tmp_path / "a.cfg")
    with pytest.raises(UsageError, match="cannot be read"):
        darknet.read_cfg(tmp_path / "b.cfg")
