"""Where examples come from: embedded sets, a user's texts or images, with boxes too, and TFDS, by one name."""

import os
from collections.abc import Iterable
from pathlib import Path

from data import detection_folders, embedded, folders, pairs, prepared
from data.files import find
from data.image_files import ENDINGS
from data.kinds import Source, Texts, no_field, texts
from data.progress import Tick, silent
from errors import UsageError, unknown


def load(
    name: str, split: str, *, field: str | None = None, data_dir: str | None = None, tick: Tick = silent
) -> Source:
    """A source by name: an embedded set, a folder of images or with boxes, text (a `.txt` file or folder), or of TFDS.

    `field` picks the text of a TFDS set that has several; `en:de` makes pairs, of a folder's files too. Raises
    UsageError for an unknown name, split or field, or a set that is not prepared, with the command that prepares it.
    """
    found = embedded.find(name) or detection_folders.find(name)
    if pairs.languages(field) and not found and Path(name).is_dir():
        return pairs.of_files(Path(name), split, str(field))
    kind = "embedded" if found else _kind_of_files(name)
    if field is not None and kind:
        raise no_field(name, field)
    if found:
        reader, splits = found
        _known_split(name, split, splits)
        return reader(split)
    if kind == "images":
        return folders.load(name, split, tick)
    if kind == "text":
        return _text_files(Path(name), split)
    return prepared.load(name, split, field, data_dir)


def splits_of(name: str, data_dir: str | None = None, field: str | None = None) -> tuple[str, ...]:
    """The splits a source has, in the order of its own listing."""
    found = embedded.find(name) or detection_folders.find(name)
    if found:
        return found[1]
    if pairs.languages(field) and Path(name).is_dir():
        return pairs.splits_of(Path(name), str(field))
    kind = _kind_of_files(name)
    if kind:
        return folders.splits_of(name) if kind == "images" else ("train", "validation")
    return tuple(prepared.find(name, data_dir).info.splits)


def _kind_of_files(name: str) -> str | None:
    """`text` or `images`, of which a folder holds more files, for a path; None for what is none.

    As many of both are images where all lie in folders, as of classes, each with its caption.
    A bare word is a path where it is a folder that holds either: `mnist` may be both a folder and a set of TFDS.
    """
    path = Path(name)
    if not path.is_dir():
        return "text" if name.endswith(".txt") or (os.sep in name and path.exists()) else None
    found = find(path, (".txt", *ENDINGS))
    texts = sum(file.suffix.lower() == ".txt" for file in found)
    images, below = len(found) - texts, sum(file.parent != path for file in found)
    if not texts and not images and os.sep not in name and name.isidentifier():
        return None
    return "images" if images > texts or (0 < images == texts and below >= 2 * images) else "text"


def _known_split(name: str, split: str, splits: Iterable[str]) -> None:
    if split not in splits:
        raise unknown(f"split of {name}", split, splits)


def _text_files(path: Path, split: str) -> Texts:
    """A file, or a folder's files in the order of their names; the last tenth is the validation split.

    Of ten files or more whole files are held out, of fewer the end of each file.
    """
    _known_split(str(path), split, ("train", "validation"))
    files = sorted(find(path, (".txt",))) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"no .txt file at {str(path)!r}; give a .txt file, or a folder that holds some or images")
    documents = [_read(f) for f in files]
    if len(documents) >= 10:
        held = max(2, len(documents) // 10)  # one alone would have no neighbour, and its windows count as documents
        chosen = documents[:-held] if split == "train" else documents[-held:]
    else:
        cuts = [len(d) - len(d) // 10 for d in documents]
        chosen = [d[:c] if split == "train" else d[c:] for d, c in zip(documents, cuts, strict=True)]
    if not any(chosen):
        raise UsageError(f"{path} is too short: its split {split!r}, a tenth, holds nothing")
    return texts(path.name, split, (d for d in chosen if d))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # byte for byte, but for a mark of byte order
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
