"""Image files: how they are opened, decoded and rejected, and the identity of a folder of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.fields import Identity, Pixels, checksum
from data.images.resize import Size
from data.progress import Tick, silent, track
from documents import reject_lfs_pointer, require_regular_file
from errors import UsageError

EXTENSIONS = tuple(f".{end}" for end in "jpg jpeg jpe jfif png bmp webp ppm pgm pbm pnm tif tiff gif".split())
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")  # Pillow's names of the formats of EXTENSIONS
# Bytes: the checksum of a split up to this size is of its files' contents, of a larger one of their names and lengths.
HASH_CONTENTS_UP_TO = 2**28
DEEP_MODES = ("I", "F")  # first letters of Pillow's modes with more than 8 bits per channel
ORIENTATION = 0x0112  # EXIF's number of the field
EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # entries of `info` where Pillow looks for it
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> the transpose that makes the image upright; from 5 on it swaps rows and columns


@contextmanager
def open_image(file: bytes | str | Path, name: str) -> Iterator[Image.Image]:
    """Open an image file, or its bytes: reads the header, not yet the pixels. Of several frames it is the first.

    Raises UsageError if it is not an image of FORMATS (whatever its extension), not a regular file, a Git LFS pointer,
    corrupt (which may show inside the `with` block), or has more than 8 bits per channel.
    """
    try:
        if not isinstance(file, bytes):
            require_regular_file(file)
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            if image.mode.startswith(DEEP_MODES):
                raise UsageError(f"{name} has more than 8 bits per channel: convert it to 8 bits first")
            yield image
    except (UsageError, MemoryError):
        raise
    except UnidentifiedImageError:
        if not isinstance(file, bytes):
            reject_lfs_pointer(file)
        raise corrupt_error(name, f"it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises nearly any exception for a corrupt file
        raise corrupt_error(name, error) from None


def corrupt_error(name: str, error: Exception | str) -> UsageError:
    """The error for a file that is not an image, or is corrupt or changed."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UsageError(f"{name} cannot be read as an image ({reason}): repair or remove it")


def decode(file: bytes | str | Path, name: str, channels: int = 3, upright: bool = True) -> Pixels:
    """Decode an image file, or its bytes, to grey or RGB without transparency: [Y X C]; `upright` applies EXIF.

    Raises UsageError as `open_image`.
    """
    with open_image(file, name) as image:
        image.load()
        transpose = EXIF_TRANSPOSES.get(orientation(image)) if upright else None
        turned = image if transpose is None else image.transpose(transpose)
        opaque = turned.convert("RGBA") if turned.mode == "P" else turned  # a palette may have transparent entries
        pixels = np.asarray(opaque.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[..., None]


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (as stored) if there is none or EXIF cannot be read.

    It is 1 for TIFFs too, which Pillow transposes itself.
    """
    if image.format == "TIFF" or not any(key in image.info for key in EXIF):
        return 1
    try:
        pixels = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow, as above; the pixels are intact, and viewers show such an image as stored
        return 1
    return pixels if pixels in EXIF_TRANSPOSES else 1


def upright_size(image: Image.Image) -> Size:
    """(rows, columns) of an open image once it is upright."""
    columns, rows = image.size
    return (columns, rows) if orientation(image) >= 5 else (rows, columns)


def identity(
    root: str | Path, split: str, description: bytes, paths: Sequence[Path], length: int, tick: Tick = silent
) -> Identity:
    """The identity of a folder's split, by a `description` of its files and their contents, `length` bytes in all."""
    hashed = track(paths if length <= HASH_CONTENTS_UP_TO else (), "hashing images", tick)
    contents = [checksum(path.read_bytes()).encode() for path in hashed]
    return {
        "name": display_name(root),
        "split": split,
        "count": len(paths),
        "checksum": checksum(description, *contents),
    }


def display_name(root: str | Path) -> str:
    """The name of a folder, also of `.`."""
    return Path(root).resolve().name
