"""How an image file is opened and decoded: formats, modes, orientation, and what is refused."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from data import sources
from data.images import decode
from data.sources import image_folder
from documents import LFS_POINTER
from errors import UsageError
from tests.support.image_folders import save


def decode_file(path: str, channels: int = 3) -> np.ndarray:
    return decode.decode(path, path, channels)


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    """Orientation 6: the file's left edge is the top."""
    exif = Image.Exif()
    exif[decode.ORIENTATION] = 6
    dark = np.zeros((32, 16, 3), np.uint8)
    dark[:, :8] = 255
    Image.fromarray(dark).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = decode_file(str(tmp_path / "turned.jpg"))
    assert got.shape == (16, 32, 3)
    assert got[:7].min() > 240
    assert got[9:].max() < 15


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_colours(mode: str, tmp_path: Path) -> None:
    """Grey is grey in three channels, transparency is dropped, and only where all are grey is there one channel."""
    ending = {"CMYK": "jpg"}.get(mode, "png")
    how = {"transparency": b"\x00\x80"} if mode == "P" else {}
    save(tmp_path / "a" / f"1.{ending}", mode=mode, **how)
    save(tmp_path / "b" / "2.png", mode="L")
    save(tmp_path / "b" / "3.png", mode="L")
    channels = 1 if mode in image_folder.GREY else 3
    assert sources.load(str(tmp_path), "train").shapes["image"] == (8, 6, channels)
    colour, grey = (decode_file(str(tmp_path / "a" / f"1.{ending}"), c) for c in (3, 1))
    assert colour.shape == (8, 6, 3)
    assert grey.shape == (8, 6, 1)
    if mode in ("P", "RGBA", "CMYK"):
        assert np.abs(colour.astype(int) - (90, 45, 10)).max() <= 12  # a palette, or JPEG, is near it
    else:
        assert (colour == grey).all()


@pytest.mark.parametrize("ending", [e.removeprefix(".") for e in decode.EXTENSIONS])
def test_every_format_is_read(ending: str, tmp_path: Path) -> None:
    save(tmp_path / f"x.{ending}")
    assert decode_file(str(tmp_path / f"x.{ending}")).shape == (8, 6, 3)


def turned(how: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[decode.ORIENTATION] = how
    return exif


def corrupted(path: Path, exif: bytes) -> Path:
    """A JPEG whose block of EXIF is some bytes."""
    return save(path, exif=b"Exif\0\0" + exif)


@pytest.mark.parametrize("how", range(1, 9))
def test_orientations_are_those_of_pillow(how: int, tmp_path: Path) -> None:
    """All eight; upright_size knows the shape before the pixels are read."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    for ending in ("png", "webp", "tif"):
        path = tmp_path / f"x.{ending}"
        Image.fromarray(pixels).save(path, exif=turned(how), **({"lossless": True} if ending == "webp" else {}))
        with Image.open(path) as image:
            want = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(decode_file(str(path)), want)
        with decode.open_image(path, "x") as image:
            assert decode.upright_size(image) == want.shape[:2]
    np.testing.assert_array_equal(decode.decode(tmp_path / "x.png", "x", upright=False), pixels)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_exif_that_is_damaged_does_not_matter(tmp_path: Path) -> None:
    """The orientation is taken where it can be read, whatever the other fields hold, and nothing is written back."""
    whole = turned().tobytes()[6:]
    assert decode_file(str(corrupted(tmp_path / "whole.jpg", whole))).shape == (6, 8, 3)
    odd = Image.Exif()
    odd[decode.ORIENTATION], odd[0x011A] = 6, 0.5
    bent = odd.tobytes()[6:].replace(b"\x1a\x01\x05\x00", b"\x1a\x01\x02\x00")  # a fraction that says it is text
    assert decode_file(str(corrupted(tmp_path / "bent.jpg", bent))).shape == (6, 8, 3)
    draw = np.random.default_rng(0)
    for i in range(200):
        spoilt = bytearray(whole[: draw.integers(4, len(whole) + 1)] + draw.bytes(draw.integers(0, 20)))
        for _ in range(draw.integers(1, 6)):
            spoilt[draw.integers(len(spoilt))] = draw.integers(256)
        path = corrupted(tmp_path / "x.jpg", bytes(spoilt))
        with decode.open_image(path, "x") as image:
            size = decode.upright_size(image)
        assert decode_file(str(path)).shape[:2] == size, (i, bytes(spoilt))


def test_only_the_formats_of_the_endings_are_opened(tmp_path: Path) -> None:
    """Pillow guesses by contents: PostScript would be given to Ghostscript, whatever its file is called."""
    path = save(tmp_path / "x.eps")
    for name, contents in {
        "eps.png": path.read_bytes(),
        "ico.png": save(tmp_path / "x.ico").read_bytes(),
        "text.jpg": b"a text",
        "empty.jpg": b"",
    }.items():
        (tmp_path / name).write_bytes(contents)
        with pytest.raises(UsageError, match=rf"{name} cannot be read as an image \(it is none of JPEG, PNG, .*GIF\)"):
            decode_file(str(tmp_path / name))
        with pytest.raises(UsageError, match="row 3 cannot be read as an image"):
            decode.decode(contents, "row 3")
    save(tmp_path / "y.webp").rename(tmp_path / "webp.jpg")  # one of them under another's name is as good
    assert decode_file(str(tmp_path / "webp.jpg")).shape == (8, 6, 3)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    """A pipe is not opened, which would wait for its writer; a pointer of Git LFS is called what it is."""
    os.mkfifo(tmp_path / "z.png")
    with pytest.raises(UsageError, match=r"z\.png cannot be read: .*a pipe"):
        decode_file(str(tmp_path / "z.png"))
    (tmp_path / "l.png").write_bytes(LFS_POINTER + b"v1\noid sha256:00\nsize 3\n")
    with pytest.raises(UsageError, match=r"l\.png is a Git LFS pointer"):
        decode_file(str(tmp_path / "l.png"))
    with pytest.raises(UsageError, match=r"none\.png cannot be read: No such file"):
        decode_file(str(tmp_path / "none.png"))


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 8), (level, 0, 0)) for level in (200, 100)]
    for ending, how in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        frames[0].save(tmp_path / f"x.{ending}", save_all=True, append_images=frames[1:], **how)
        assert decode_file(str(tmp_path / f"x.{ending}"))[..., 0].tolist() == [[200] * 6] * 8


def test_deep_images(tmp_path: Path) -> None:
    """Sixteen bits per channel of grey are refused; of PNG's colours Pillow gives the upper eight."""
    for name, image in {
        "a.png": Image.fromarray(np.full((4, 4), 300, np.uint16)),
        "b.tif": Image.fromarray(np.zeros((4, 4), np.float32)),
        "c.tif": Image.fromarray(np.zeros((4, 4), np.int32)),
    }.items():
        image.save(tmp_path / name)
        with pytest.raises(UsageError, match=f"{name} has more than 8 bits per channel"):
            decode_file(str(tmp_path / name))
    rows = zlib.compress(b"".join(b"\0" + bytes((200, 1, 100, 2, 50, 3)) * 4 for _ in range(4)))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), b"IDAT": rows, b"IEND": b""}
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks.items()]
    (tmp_path / "d.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert decode_file(str(tmp_path / "d.png"))[0, 0].tolist() == [200, 100, 50]
