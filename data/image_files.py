"""Image files as their owners have them: opened in one manner, refused in one, and what a set of them is told by."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.kinds import Pixels, checksum
from errors import UsageError

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
HASHED = 2**28  # bytes: of a split no larger than this the contents are in its checksum, else names and lengths only
DEEP = ("I", "F")  # first letters of Pillow's modes of more than 8 bits a channel
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises


@contextmanager
def opened(file: bytes | str | Path, name: str) -> Iterator[Image.Image]:
    """An image file, or its bytes, with its header read and its pixels not yet.

    Raises UsageError where it is no image, is damaged, as may show inside the block, or is deeper than 8 bits.
    """
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            if image.mode.startswith(DEEP):
                raise UsageError(f"{name} has more than 8 bits a channel: convert it first")
            yield image
    except UsageError:
        raise
    except UNREADABLE as error:
        raise damaged(name, error) from None


def damaged(name: str, error: Exception | str) -> UsageError:
    """What to raise for a file that is no image, or not the one it was."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"{name} cannot be read as an image ({first}): mend it or take it away")


def decode(file: bytes | str | Path, name: str, channels: int = 3, upright: bool = True) -> Pixels:
    """An image file, or its bytes, as grey or RGB, any transparency dropped -> [Y X C]; `upright` as EXIF tells.

    Raises UsageError as `opened`.
    """
    with opened(file, name) as image:
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        plain = image.convert("RGBA") if image.mode == "P" else image  # a palette may have transparent entries
        found = np.asarray(plain.convert("RGB" if channels == 3 else "L"))
    return found if channels == 3 else found[..., None]


def identity(root: str | Path, split: str, told: bytes, paths: Sequence[Path], length: int) -> dict[str, Any]:
    """What a split of a folder is known by: what its owner tells of the files, and their contents, `length` bytes."""
    contents = [checksum(path.read_bytes()).encode() for path in paths] if length <= HASHED else []
    return {"name": name_of(root), "split": split, "count": len(paths), "checksum": checksum(told, *contents)}


def name_of(root: str | Path) -> str:
    """The name of a folder, also of one that is written `.`."""
    return Path(root).resolve().name
