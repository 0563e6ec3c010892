"""A writer of TensorBoard event files without TensorFlow or PyTorch: scalars, texts and images.

A file is a sequence of records: length, its checksum, data, its checksum. The data is an Event, a protobuf message.
Source: tensorflow/core: lib/io/record_writer.h, util/event.proto, framework/summary.proto, framework/tensor.proto.
"""

import math
import struct
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from etils import epath

INTEGER, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types of protocol buffers
STRING = 7  # DT_STRING
RGBA = 4


class AppendFile:
    """An unbuffered append-only file, so that a full disk raises at once, naming the file."""

    def __init__(self, path: epath.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file: Any = path.open("ab") if "://" in str(path) else FileIO(path, "a")

    def write(self, data: bytes) -> None:
        """Append all of `data`. Raises OSError with the file's name."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class EventWriter:
    """An event file. It invalidates the events of older files in its folder from step `purge` on.

    TensorBoard reads the files `events.out.tfevents.*` of a folder in the order of their names.
    """

    def __init__(self, path: epath.Path, time: float, purge: int | None = None) -> None:
        self._file = AppendFile(path)
        self._write(time, 0, _field(3, "brain.Event:2"))
        if purge is not None:
            self._write(time, purge, _field(7, _field(1, 1)))  # a SessionLog START

    def scalar(self, tag: str, value: float, step: int, time: float) -> None:
        """Write a number."""
        self._summary(tag, _field(2, float(value)), step, time)

    def text(self, tag: str, text: str, step: int, time: float) -> None:
        """Write a Markdown text."""
        string = _field(1, STRING) + _field(2, _field(2, _field(1, 1))) + _field(8, text)
        self._summary(tag, _field(9, _field(1, _field(1, "text"))) + _field(8, string), step, time)

    def image(self, tag: str, png: bytes, step: int, time: float) -> None:
        """Write an image, given as the bytes of a PNG file."""
        width, height = struct.unpack(">II", png[16:24])
        picture = _field(1, height) + _field(2, width) + _field(3, RGBA) + _field(4, png)
        self._summary(tag, _field(4, picture), step, time)

    def _summary(self, tag: str, value: bytes, step: int, time: float) -> None:
        self._write(time, step, _field(5, _field(1, _field(1, tag) + value)))

    def _write(self, time: float, step: int, what: bytes) -> None:
        event = _tag(1, DOUBLE) + struct.pack("<d", time) + _field(2, step) + what
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_checksum(length) + event + _masked_checksum(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_files(files: Sequence[Path], folder: Path, n: int, time: float) -> None:
    """Write an evaluation's files, .png and .txt, as events of step `n`: one event file per step, replacing an old one.

    They need their own folder, a separate run in TensorBoard, which stops reading a file once a later one exists.
    """
    path = epath.Path(folder) / f"events.out.tfevents.{n:010d}"
    path.unlink(missing_ok=True)
    events = EventWriter(path, time)
    for file in files:
        tag = file.stem.removeprefix(f"eval-{n}-")
        if file.suffix == ".png":
            events.image(tag, file.read_bytes(), n, time)
        else:
            events.text(tag, f"```\n{file.read_text(encoding='utf-8')}\n```", n, time)
    events.close()


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """A field of a message: an integer, a 32-bit float, a text, or bytes, which may be a message."""
    if isinstance(value, int):
        return _tag(number, INTEGER) + _varint(value)
    if isinstance(value, float):
        try:
            return _tag(number, FLOAT) + struct.pack("<f", value)
        except OverflowError:
            return _tag(number, FLOAT) + struct.pack("<f", math.copysign(math.inf, value))
    data = value.encode() if isinstance(value, str) else value
    return _tag(number, BYTES) + _varint(len(data)) + data


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _checksum_table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        found.append(byte)
    return tuple(found)


_TABLE = _checksum_table()


def checksum(data: bytes) -> int:
    """CRC-32C."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_checksum(data: bytes) -> bytes:
    crc = checksum(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
