"""Image files as their owners have them: opened in one manner, refused in one, and the identity of a set of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.geometry import Size
from data.kinds import Pixels, checksum
from data.progress import Tick, silent, track
from documents import reject_lfs_pointer, require_regular_file
from errors import UsageError

EXTENSIONS = tuple(f".{end}" for end in "jpg jpeg jpe jfif png bmp webp ppm pgm pbm pnm tif tiff gif".split())
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")  # of these endings, as Pillow names them
HASH_CONTENTS_UP_TO = (
    2**28
)  # bytes: of a split no larger than this the contents are in its checksum, else names and lengths only
DEEP_MODES = ("I", "F")  # first letters of Pillow's modes of more than 8 bits a channel
ORIENTATION = 0x0112  # EXIF's number of the field
EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for it
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # from EXIF's orientations to what makes an image upright; from 5 on rows become columns


@contextmanager
def open_image(file: bytes | str | Path, name: str) -> Iterator[Image.Image]:
    """An image file, or its bytes, with its header read and its pixels not yet; of several frames the first.

    Raises UsageError where it is no image of FORMATS, whatever its ending, no regular file, a pointer of Git LFS,
    damaged, as may show inside the block, or deeper than 8 bits.
    """
    try:
        if not isinstance(file, bytes):
            require_regular_file(file)
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.mode.startswith(DEEP_MODES):
                raise UsageError(f"{name} has more than 8 bits a channel: convert it first")
            yield image
    except (UsageError, MemoryError):
        raise
    except UnidentifiedImageError:
        if not isinstance(file, bytes):
            reject_lfs_pointer(file)
        raise corrupt_error(name, f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise corrupt_error(name, error) from None


def corrupt_error(name: str, error: Exception | str) -> UsageError:
    """What to raise for a file that is no image, or not the one it was."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"{name} cannot be read as an image ({first}): mend it or take it away")


def decode(file: bytes | str | Path, name: str, channels: int = 3, upright: bool = True) -> Pixels:
    """An image file, or its bytes, as grey or RGB, any transparency dropped -> [Y X C]; `upright` by EXIF.

    Raises UsageError as `open_image`.
    """
    with open_image(file, name) as image:
        image.load()
        turn = EXIF_TRANSPOSES.get(orientation(image)) if upright else None
        turned = image if turn is None else image.transpose(turn)
        plain = turned.convert("RGBA") if turned.mode == "P" else turned  # a palette may have transparent entries
        found = np.asarray(plain.convert("RGB" if channels == 3 else "L"))
    return found if channels == 3 else found[..., None]


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1, as the pixels lie, where there is none or the block cannot be read.

    TIFFs have 1: Pillow turns them itself.
    """
    if image.format == "TIFF" or not any(key in image.info for key in EXIF):
        return 1
    try:
        found = image.getexif().get(ORIENTATION)
    except Exception:  # as above; the pixels are whole, and viewers show such an image as it lies
        return 1
    return found if found in EXIF_TRANSPOSES else 1


def upright_size(image: Image.Image) -> Size:
    """Rows and columns of an opened image after it is turned upright."""
    columns, rows = image.size
    return (columns, rows) if orientation(image) >= 5 else (rows, columns)


def identity(
    root: str | Path, split: str, description: bytes, paths: Sequence[Path], length: int, tick: Tick = silent
) -> dict[str, Any]:
    """The identity of a split of a folder: a `description` of its files, and their contents, `length` bytes."""
    hashed = track(paths if length <= HASH_CONTENTS_UP_TO else (), "hashing images", tick)
    contents = [checksum(path.read_bytes()).encode() for path in hashed]
    return {
        "name": display_name(root),
        "split": split,
        "count": len(paths),
        "checksum": checksum(description, *contents),
    }


def display_name(root: str | Path) -> str:
    """The name of a folder, also of one that is written `.`."""
    return Path(root).resolve().name
