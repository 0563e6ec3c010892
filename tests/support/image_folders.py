"""Small folders of images in class folders."""

from pathlib import Path
from typing import Any

from PIL import Image

from data.types import Examples


def save(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", level: int = 90, **how: Any) -> Path:
    """An image of one colour, rows by columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (level, level // 2, 10))
    (image.quantize(2) if mode == "P" else image.convert(mode)).save(path, **how)
    return path


def classes(root: Path, count: int = 12, vary: bool = True) -> Path:
    """Three classes with `count` images each, which differ in their level of red."""
    for c, name in enumerate(("cat", "dog", "eel")):
        for i in range(count):
            save(root / name / f"{i:02d}.png", (8 + vary * (i % 3), 6 + vary * (i % 2)), level=60 * c + 50 + i)
    return root


def labels_and_levels(source: Examples) -> list[tuple[int, int]]:
    """Each example's label and level of red."""
    got = source.__getitems__(range(len(source)))
    return [(int(y), int(image[0, 0, 0])) for image, y in zip(got["image"], got["label"], strict=True)]
