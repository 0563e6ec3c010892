"""Data sources by name: built-in sets, one's own functions, files and folders of texts, arrays or images, and TFDS."""

import os

from data.fields import field_error
from data.files import expand_home
from data.progress import Tick, silent
from data.source import Source
from data.sources import (
    arrays,
    builtin,
    detection_folder,
    image_folder,
    labelled_texts,
    own_function,
    parallel_text,
    splits,
    text_files,
    tfds,
)
from data.sources.reader import Kind, Reader, Request
from errors import UsageError, quote

# The kinds of sources in order: the first that has a reader for a name reads it. TFDS has one for any name.
KINDS: list[Kind] = [
    builtin,
    own_function,
    detection_folder,
    labelled_texts,
    parallel_text,
    arrays,
    image_folder,
    text_files,
    tfds,
]


def find_reader(request: Request) -> Reader:
    """The reader of a data set, of the first kind that reads its name. Raises UsageError as the kinds do."""
    try:
        return next(reader for kind in KINDS if (reader := kind.find(request)) is not None)
    except OSError as error:  # as for a name that is too long for a path
        raise UsageError(f"data set {quote(request.name)} cannot be opened: {error.strerror}") from None


def load(
    name: str, split: str, *, field: str | None = None, data_dir: str | None = None, tick: Tick = silent
) -> Source:
    """A source by name: a built-in set, a folder of images (with or without boxes), a text file or folder, or TFDS.

    `split` may be a part or a sum of splits, as `train[:90%]`. `field` chooses the text field of a TFDS set or of rows;
    `en:de` makes parallel text, from a folder's pairs of files too. Raises UsageError for an unknown name, split or
    field, and for a TFDS set that is not prepared, with the command that prepares it.
    """
    reader = find_reader(Request(expand_home(name), field, data_dir, tick))
    if field is not None and not reader.takes_field:
        raise field_error(expand_home(name), field)
    if splits.is_plain(split) or reader.reads_parts:
        return reader.load(split)
    return splits.take(split, reader.load)


def splits_of(name: str, data_dir: str | None = None, field: str | None = None) -> tuple[str, ...]:
    """The splits of a source, in the source's order; () if they are not known. Raises UsageError as `load`."""
    return find_reader(Request(expand_home(name), field, data_dir)).splits()


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
