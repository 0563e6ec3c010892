"""Reading of text and JSON files: any problem raises a UsageError of one line that names the file."""

import codecs
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errors import UsageError, quote

Json = dict[str, Any]  # a JSON object
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# UTF-32 is first, as UTF-16's mark is the beginning of UTF-32's.
WIDE_BOMS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"}
WIDE_BOMS |= {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def require_regular_file(path: str | Path) -> None:
    """Raises UsageError if a path, with links followed, is not a regular file: opening a pipe would block."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL
        is_broken_link = isinstance(error, FileNotFoundError) and os.path.islink(path)
        why = "it is a broken link" if is_broken_link else getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {why}") from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} cannot be read: it is {_file_type(mode)}, not a regular file")


def _file_type(mode: int) -> str:
    names = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return names.get(stat.S_IFMT(mode), "a device")


def reject_lfs_pointer(path: str | Path) -> None:
    """Raises UsageError if a file cannot be opened, is not a regular file, or is a Git LFS pointer."""
    require_regular_file(path)
    try:
        with Path(path).open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if start == LFS_POINTER:
        raise UsageError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with its line ends unchanged and without a byte-order mark.

    Raises UsageError as `reject_lfs_pointer`, for other encodings, and for NUL bytes, as in binary files and UTF-16.
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
    """The lines of a text, which end in LF or CR LF, except perhaps the last one.

    `str.splitlines` also splits at U+0085, U+2028 and other characters that occur inside lines of data.
    """
    *lines, last = text.split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    return [*lines, last] if last else lines


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file. Raises UsageError as `read_text`, and if lines end in CR only."""
    text = read_text(path)
    if "\r" in text and "\n" not in text:
        raise UsageError(f"{path} ends its lines with CR only; convert them to LF")
    return split_lines(text)


def read_rows(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON lines file, each with its place, `FILE, line N`. Empty lines are skipped.

    Raises UsageError as `read_lines` and `parse_json`, and for a lone surrogate, which is not a character.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number:,}"
            value = parse_json(line, where)
            try:
                json.dumps(value, ensure_ascii=False).encode() if "\\u" in line else None
            except UnicodeEncodeError:
                raise UsageError(f"{where} has half of a surrogate pair, which is not a character") from None
            yield where, value


def parse_json(text: str | bytes, name: str | Path) -> Any:
    """The value of a JSON text; `name` is for error messages.

    Raises UsageError for invalid JSON, too deep nesting, and a key with two different values.
    """
    try:
        return json.loads(text, object_pairs_hook=_reject_duplicate_keys)
    except RecursionError:
        raise UsageError(f"{name} cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"{name} cannot be read as JSON: {error}") from None


def read_json(path: str | Path) -> Any:
    """The value of a JSON file. Raises UsageError as `read_text` and `parse_json`."""
    return parse_json(read_text(path), path)


def read_settings(path: str | Path) -> Json:
    """The object in a JSON file, as a dict. Raises UsageError as `read_json`, and for another type of value."""
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise UsageError(f"{path} must be a JSON object with settings, not {type(settings).__name__}")
    return settings


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values and values[key] != value:
            raise ValueError(f"the key {quote(key)} appears twice, with two values")
        values[key] = value
    return values
