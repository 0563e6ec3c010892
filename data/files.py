"""Listing the files of a folder, by the same rules for everything that is read from folders."""

import os
import re
from pathlib import Path

from documents import require_regular_file
from errors import UsageError

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")  # in any case
PLAIN, JSON, CSV = (".txt",), (".jsonl", ".ndjson"), (".csv", ".tsv")  # extensions of texts, and of texts in rows
PARQUET, ARROW = (".parquet",), (".arrow",)  # rows too; those of .arrow are not read
ROWS = (*JSON, *CSV, *PARQUET)
TEXTS = (*PLAIN, *ROWS, *ARROW)  # of text files in a folder
SYSTEM = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")  # folders, in any case


def list_files(root: str | Path, extensions: tuple[str, ...]) -> list[Path]:
    """The files below a folder with one of the extensions, in any case, sorted by folder, then by name.

    A folder's own files come before those of its subfolders. Hidden files and folders are skipped, and so are those of
    SYSTEM (`__MACOSX`). Links are followed. Each file is listed once: by its own path if that lies below the root,
    otherwise by its first link. Raises UsageError for a broken link, for what is not a regular file (a pipe would
    block its reader), and for a folder that cannot be listed.
    """
    files, visited, links = list[str](), set[str](), [os.fspath(root)]
    for link in links:  # links that the walk finds are appended, so that all files come before all links
        walk = [(link, os.path.realpath(link))]
        for path, real in walk:
            if real in visited:
                continue
            if not os.path.isdir(path):
                if path.lower().endswith(extensions):
                    require_regular_file(path)
                    visited.add(real)
                    files.append(path)
                continue
            visited.add(real)
            for entry in _list_entries(path):
                if _is_hidden(entry.name):
                    continue
                real_path = os.path.join(real, entry.name)
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    walk.append((entry.path, real_path))
                elif entry.name.lower().endswith(extensions) and real_path not in visited:
                    if not entry.is_file():  # known from the folder's entry, without a stat
                        require_regular_file(entry.path)
                    visited.add(real_path)
                    files.append(entry.path)
    return [Path(path) for path in sorted(files, key=_sort_key)]


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, by name. Raises UsageError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error.strerror}") from None


def glob_any_case(root: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a lower-case pattern in any case, by name, without hidden ones."""
    any_case = re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", pattern)
    files = (path for path in root.glob(any_case) if not any(map(_is_hidden, path.relative_to(root).parts)))
    return sorted(files)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _sort_key(path: str) -> tuple[str, str]:
    """The sort key of a path: folder, then name. Folders sort by their parts: a separator is less than any letter."""
    folder, name = os.path.split(path)
    return folder.replace(os.sep, "\0"), name


def expand_home(path: str) -> str:
    """A path with a leading `~` or `~user` replaced by that home folder."""
    return os.path.expanduser(path)
