"""Files of others, read whole: whatever is wrong with one is one line that names it."""

import codecs
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errors import UsageError, quote

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WIDE_BOMS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}  # before UTF-16, whose mark begins UTF-32's
WIDE_BOMS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def require_regular_file(path: str | Path) -> None:
    """Raises UsageError where a path, links followed, is no regular file: opening a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # a name may hold what no file's does
        nowhere = isinstance(error, FileNotFoundError) and os.path.islink(path)
        why = "a link to nowhere" if nowhere else getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {why}") from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} cannot be read: it is no regular file but {_file_type(mode)}")


def _file_type(mode: int) -> str:
    named = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return named.get(stat.S_IFMT(mode), "a device")


def reject_lfs_pointer(path: str | Path) -> None:
    """Raises UsageError where a file cannot be opened, is no regular file, or is a pointer that Git LFS left."""
    require_regular_file(path)
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if start == LFS_POINTER:
        raise UsageError(f"{path} is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it")


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, line ends as they are, without a byte-order mark.

    Raises UsageError, also as `reject_lfs_pointer`, and for NUL bytes, which binary files and UTF-16 text hold.
    """
    reject_lfs_pointer(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    for mark, encoding in WIDE_BOMS.items():
        if data.startswith(mark):
            raise UsageError(f"{path} is {encoding} text, not UTF-8; convert it first")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start:,}: {error.reason}); convert it first") from None
    if (at := data.find(0)) >= 0:
        raise UsageError(f"{path} is not UTF-8 text (byte {at:,} is NUL, as in binary files and UTF-16)")
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text, each ended by LF or CR LF, the last perhaps by neither.

    `str.splitlines` also cuts at U+0085, U+2028 and other characters that lines of data hold.
    """
    lines = text.split("\n")
    ended = [line.removesuffix("\r") for line in lines[:-1]]
    return ended + lines[-1:] if lines[-1] else ended


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file. Raises UsageError as `read_text`, and for lines that end in CR alone."""
    text = read_text(path)
    if "\r" in text and "\n" not in text:
        raise UsageError(f"{path} ends its lines with CR alone; convert them to LF")
    return split_lines(text)


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The values of a file with JSON in each line, each with its place, `FILE, line N`; empty lines are passed over.

    Raises UsageError as `read_lines` and `parse_json`, and for half of a surrogate pair, which is no character.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number:,}"
            value = parse_json(line, where)
            try:
                json.dumps(value, ensure_ascii=False).encode() if "\\u" in line else None
            except UnicodeEncodeError:
                raise UsageError(f"{where} has half of a surrogate pair, which is no character") from None
            yield where, value


def parse_json(text: str | bytes, name: str | Path) -> Any:
    """The value of a JSON text; `name` is what a refusal calls it.

    Raises UsageError for what is no JSON, nests too deep, or gives one key two values.
    """
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    except RecursionError:
        raise UsageError(f"{name} cannot be read as JSON: it nests too deep") from None
    except ValueError as error:
        raise UsageError(f"{name} cannot be read as JSON: {error}") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises UsageError as `read_text` and `parse_json`."""
    return parse_json(read_text(path), path)


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings by name of a JSON file. Raises UsageError as `read_json`, and for another value than an object."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no settings by name: it is {type(found).__name__} where an object is due")
    return found


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found and found[key] != value:
            raise ValueError(f"the key {quote(key)} stands twice, with two values")
        found[key] = value
    return found
