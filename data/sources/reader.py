"""What a kind of source offers, and what it is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from data.fields import unknown_split
from data.files import TEXTS, list_files
from data.images.decode import EXTENSIONS
from data.progress import Tick, silent
from data.source import Source


@dataclass(frozen=True)
class Request:
    """A data set's name, as a path without `~`; the value of data.field; TFDS's folder; and where progress goes."""

    name: str
    field: str | None = None
    data_dir: str | None = None
    tick: Tick = silent

    @property
    def path(self) -> Path:
        """The name as a path, which need not exist."""
        return Path(self.name)

    @property
    def is_word(self) -> bool:
        """Whether the name is a bare word, as `mnist`: it may be both a folder and a TFDS data set.

        The folder wins if it holds data that Canon reads; `./mnist` is the folder in any case.
        """
        return self.name.isidentifier()

    @cached_property
    def files(self) -> list[Path]:
        """The texts and images of a folder."""
        return list_files(self.path, (*TEXTS, *EXTENSIONS))

    @cached_property
    def path_kind(self) -> Literal["text", "images"] | None:
        """`text` or `images` for a path; of a folder, the kind with more files. None for a name that is not a path.

        Equally many are images if all lie in subfolders: class folders with a caption for each image.
        A bare word is a path if it is a folder with texts or images.
        """
        if not self.path.is_dir():
            is_text = self.name.lower().endswith(TEXTS) or (not self.is_word and self.path.exists())
            return "text" if is_text else None
        texts = sum(file.name.lower().endswith(TEXTS) for file in self.files)
        images, below = len(self.files) - texts, sum(file.parent != self.path for file in self.files)
        if not self.files and self.is_word:
            return None
        return "images" if images > texts or (0 < images == texts and below >= 2 * images) else "text"


@dataclass(frozen=True)
class Reader:
    """Reads one data set: the names of its splits in order (() if they are not known), and a split by name.

    `takes_field`: it has fields for data.field to choose from. `reads_parts`: `load` reads parts and sums of splits.
    """

    splits: Callable[[], tuple[str, ...]]
    load: Callable[[str], Source]
    takes_field: bool = False
    reads_parts: bool = False


class Kind(Protocol):
    """A kind of source: a module."""

    def find(self, request: Request, /) -> Reader | None:
        """The reader of a data set, None if its name is not of this kind. Raises UsageError if it cannot be read."""


def checked_reader(
    name: str, splits: Callable[[], tuple[str, ...]], load: Callable[[str], Source], takes_field: bool = False
) -> Reader:
    """A Reader that raises UsageError for a split that is not one of `splits`."""

    def load_known(split: str) -> Source:
        known = splits()
        if split not in known:
            raise unknown_split(name, split, known)
        return load(split)

    return Reader(splits, load_known, takes_field)
