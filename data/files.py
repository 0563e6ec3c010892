"""Which files lie in a folder, and what each must be: one rule for all that is read from folders."""

import os
import re
from pathlib import Path

from documents import require_regular_file
from errors import UsageError

SYSTEM = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")  # folders, in any case


def list_files(root: str | Path, extensions: tuple[str, ...]) -> list[Path]:
    """The files below a folder with one of the endings, in any case; a folder's own before those of folders below it.

    Both by name. Hidden files and folders are passed over, as are those that systems leave (`__MACOSX`). Links are
    followed, and each file is listed once: by its own path if that lies below the root, else by its first link.
    Raises UsageError for a link to nowhere, for what is no regular file, as a pipe, which would block its reader, and
    for a folder that cannot be listed.
    """
    found, seen, links = list[str](), set[str](), [os.fspath(root)]
    for link in links:  # those that the walk meets are appended, so that all files come before all links
        walk = [(link, os.path.realpath(link))]
        for path, real in walk:
            if real in seen:
                continue
            if not os.path.isdir(path):
                if path.lower().endswith(extensions):
                    require_regular_file(path)
                    seen.add(real)
                    found.append(path)
                continue
            seen.add(real)
            for entry in _list_entries(path):
                if _is_hidden(entry.name):
                    continue
                own = os.path.join(real, entry.name)
                if entry.is_symlink():
                    links.append(entry.path)
                elif entry.is_dir():
                    walk.append((entry.path, own))
                elif entry.name.lower().endswith(extensions) and own not in seen:
                    if not entry.is_file():  # known without a look at the file
                        require_regular_file(entry.path)
                    seen.add(own)
                    found.append(entry.path)
    return [Path(path) for path in sorted(found, key=_sort_key)]


def _list_entries(folder: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Raises UsageError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed: {error.strerror}") from None


def glob_any_case(root: Path, pattern: str) -> list[Path]:
    """The paths below a folder that match a pattern of lower case, themselves in any case, by name; none hidden."""
    any_case = re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", pattern)
    found = (path for path in root.glob(any_case) if not any(map(_is_hidden, path.relative_to(root).parts)))
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _sort_key(path: str) -> tuple[str, str]:
    """What paths are sorted by: folders by the names of which they are made, as a separator is less than any letter."""
    folder, name = os.path.split(path)
    return folder.replace(os.sep, "\0"), name


def expand_home(path: str) -> str:
    """A path with `~` or `~user` at its beginning replaced by that home folder."""
    return os.path.expanduser(path)
