"""Data sources by name: built-in sets, files and folders of texts or images (with or without boxes), and TFDS."""

import os
from collections.abc import Iterable
from pathlib import Path

from data.files import expand_home, list_files
from data.images.decode import EXTENSIONS
from data.progress import Tick, silent
from data.sources import builtin, detection_folder, image_folder, parallel_text, splits, text_files, tfds
from data.types import Source, field_error, unknown_split
from errors import UsageError


def load(
    name: str, split: str, *, field: str | None = None, data_dir: str | None = None, tick: Tick = silent
) -> Source:
    """A source by name: a built-in set, a folder of images (with or without boxes), a text file or folder, or TFDS.

    `split` may be a part or a sum of splits, as `train[:90%]`. `field` chooses the text field of a TFDS set or of rows;
    `en:de` makes parallel text, from a folder's pairs of files too. Raises UsageError for an unknown name, split or
    field, and for a TFDS set that is not prepared, with the command that prepares it.
    """
    name = expand_home(name)
    if splits.is_plain(split) or _is_tfds_name(name):
        return _load(name, split, field, data_dir, tick)
    return splits.take(split, lambda one: _load(name, one, field, data_dir, tick))


def _load(name: str, split: str, field: str | None, data_dir: str | None, tick: Tick) -> Source:
    found = builtin.find_reader(name) or detection_folder.find_reader(name, tick)
    kind = "embedded" if found else _file_kind(name)
    both = parallel_text.languages(field)
    if not found and _is_parallel_folder(name, field):
        return parallel_text.from_files(Path(name), split, str(field))
    if both and kind == "text" and text_files.has_rows(Path(name)):
        return parallel_text.from_rows(Path(name), split, str(field))
    if field is not None and kind and not (kind == "text" and text_files.has_rows(Path(name))):
        raise field_error(name, field)
    if found:
        reader, known = found
        _check_split(name, split, known)
        return reader(split)
    if kind == "images":
        return image_folder.load(name, split, tick)
    if kind == "text":
        _check_split(name, split, text_files.splits_of(Path(name)))
        return text_files.load(Path(name), split, field)
    return tfds.load(name, split, field, data_dir, tick)


def _is_parallel_folder(name: str, field: str | None) -> bool:
    """Whether `field` names two languages and the folder has their pairs of files, or at least no rows."""
    folder = Path(name)
    if not parallel_text.languages(field) or not folder.is_dir():
        return False
    return bool(parallel_text.splits_of(folder, str(field))) or not text_files.has_rows(folder)


def _is_tfds_name(name: str) -> bool:
    """Whether a name can only be that of a TFDS data set. TFDS reads parts of splits itself."""
    return not (
        builtin.find_reader(name) or detection_folder.find_reader(name) or Path(name).is_dir() or _file_kind(name)
    )


def split_names(text: str) -> list[str]:
    """The names in a comma-separated list of data sets; a path that exists may contain commas.

    Raises UsageError for an empty name.
    """
    parts, found = text.split(","), list[str]()
    while parts:
        runs = [",".join(parts[:count]).strip() for count in range(len(parts), 0, -1)]
        name = next((run for run in runs if run and os.path.exists(expand_home(run))), runs[-1])
        if not name:
            raise UsageError(f"config key 'data.name' = {text!r} has an empty name")
        found.append(name)
        parts = parts[len(parts) - runs.index(name) :]
    return found


def splits_of(name: str, data_dir: str | None = None, field: str | None = None) -> tuple[str, ...]:
    """The splits of a source, in the source's order."""
    name = expand_home(name)
    found = builtin.find_reader(name) or detection_folder.find_reader(name)
    if found:
        return found[1]
    if _is_parallel_folder(name, field):
        return parallel_text.splits_of(Path(name), str(field))
    kind = _file_kind(name)
    if kind:
        return image_folder.splits_of(name) if kind == "images" else text_files.splits_of(Path(name))
    return tuple(tfds.open_builder(name, data_dir).info.splits)


def _file_kind(name: str) -> str | None:
    """`text` or `images` for a path; of a folder, the kind with more files. None for a name that is not a path.

    Equally many are images if all lie in subfolders: class folders with a caption for each image.
    A bare word is a path if it is a folder with texts or images: `mnist` may be both a folder and a TFDS data set.
    """
    path = Path(name)
    if not path.is_dir():
        is_path = os.sep in name or not name.isidentifier()
        return "text" if name.lower().endswith(text_files.EXTENSIONS) or (is_path and path.exists()) else None
    found = list_files(path, (*text_files.EXTENSIONS, *EXTENSIONS))
    texts = sum(file.name.lower().endswith(text_files.EXTENSIONS) for file in found)
    images, below = len(found) - texts, sum(file.parent != path for file in found)
    if not texts and not images and os.sep not in name and name.isidentifier():
        return None
    return "images" if images > texts or (0 < images == texts and below >= 2 * images) else "text"


def _check_split(name: str, split: str, splits: Iterable[str]) -> None:
    if split not in splits:
        raise unknown_split(name, split, splits)
