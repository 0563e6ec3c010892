"""TensorBoard's event files, read back by the protocol buffers' own parser."""

import io
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from train.record import events, metrics
from train.runtime import Runtime

KINDS = {"double": 1, "float": 2, "int64": 3, "int32": 5, "string": 9, "bytes": 12}
PROTOS = {  # of tensorflow/core, those fields that are written: number, name, kind; * repeats
    "Event": "1 wall_time double, 2 step int64, 3 file_version string, 5 summary Summary, 7 session SessionLog",
    "SessionLog": "1 status int32",
    "Summary": "1 value *Value",
    "Value": "1 tag string, 2 simple_value float, 4 image Image, 8 tensor Tensor, 9 metadata Metadata",
    "Image": "1 height int32, 2 width int32, 3 colorspace int32, 4 encoded bytes",
    "Tensor": "1 dtype int32, 2 shape Shape, 8 string_val *bytes",
    "Shape": "2 dim *Dim",
    "Dim": "1 size int64",
    "Metadata": "1 plugin Plugin",
    "Plugin": "1 plugin_name string",
}


def parser() -> Any:
    """The class of an Event."""
    file = descriptor_pb2.FileDescriptorProto(name="event.proto", package="e", syntax="proto3")
    for name, fields in PROTOS.items():
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            number, called, kind = field.split()
            repeated, kind = kind.startswith("*"), kind.lstrip("*")
            made = message.field.add(name=called, number=int(number), label=3 if repeated else 1)
            made.type = KINDS.get(kind, 11)
            if kind not in KINDS:
                made.type_name = f".e.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Event"))


def read(path: Path) -> list[Any]:
    """The events of a file, its checksums held to the data."""
    data, found = path.read_bytes(), []
    Event = parser()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = data[12 : 12 + length]
        assert data[8:12] == events._masked_checksum(data[:8])
        assert data[12 + length : 16 + length] == events._masked_checksum(event)
        found.append(Event.FromString(event))
        data = data[16 + length :]
    return found


def test_the_checksum_is_that_of_its_specification() -> None:
    """RFC 3720, B.4, and the check value of CRC-32C."""
    assert events.checksum(b"123456789") == 0xE3069283
    assert events.checksum(bytes(32)) == 0x8A9136AA
    assert events.checksum(bytes(range(32))) == 0x46DD794E


def test_a_run_writes_numbers_and_its_config(tmp_path: Path) -> None:
    runtime = Runtime(lambda: 1234.5, {}, io.StringIO())
    recorder = metrics.Recorder(str(tmp_path), runtime, 20, config={"train": {"steps": 40}})
    recorder.write("train", 300, {"loss": 0.25, "bad": math.nan, "huge": 1e300})
    recorder.write("eval", 300, {"loss": 0.5}, split="test")
    recorder.close()
    (file,) = (tmp_path / "events").iterdir()
    assert "tfevents" in file.name
    version, session, config, *rest = read(file)
    assert (version.file_version, version.wall_time) == ("brain.Event:2", 1234.5)
    assert (session.session.status, session.step) == (1, 21)  # START: what came after the checkpoint is void
    (value,) = config.summary.value
    assert (value.tag, value.metadata.plugin.plugin_name, value.tensor.dtype) == ("config", "text", 7)
    assert [d.size for d in value.tensor.shape.dim] == [1]
    assert '"steps": 40' in value.tensor.string_val[0].decode()
    scalars = {value.tag: (event.step, value.simple_value) for event in rest for value in event.summary.value}
    assert scalars == {"train/loss": (300, 0.25), "train/huge": (300, math.inf), "test/loss": (300, 0.5)}


def test_pictures_and_texts_of_an_evaluation(tmp_path: Path) -> None:
    """At the checkpoint's step, under their names; a second evaluation takes the place of the first."""
    from matplotlib.figure import Figure

    Figure(figsize=(2, 1), dpi=50).savefig(tmp_path / "eval-30-confusion.png")
    (tmp_path / "eval-30-passages.txt").write_text("größer", encoding="utf-8")
    files = [tmp_path / "eval-30-confusion.png", tmp_path / "eval-30-passages.txt"]
    for _ in range(2):
        events.write_files(files, tmp_path / "events", 30, 5.0)
    (file,) = (tmp_path / "events").iterdir()
    _, picture, text = read(file)
    (value,) = picture.summary.value
    assert (picture.step, value.tag) == (30, "confusion")
    assert (value.image.width, value.image.height) == (100, 50)
    assert value.image.encoded == files[0].read_bytes()
    assert (text.step, text.summary.value[0].tag) == (30, "passages")
    assert "größer" in text.summary.value[0].tensor.string_val[0].decode()


@pytest.mark.parametrize("which", ["metrics", "events"])
def test_a_full_disk_is_one_error_that_names_the_file(which: str, tmp_path: Path) -> None:
    """And closing afterwards raises nothing: what was not written is not tried again."""
    recorder = metrics.Recorder(str(tmp_path), Runtime(lambda: 0.0, {}, io.StringIO()))
    full = events.AppendFile(epath.Path("/dev/full"))
    full._path = epath.Path(tmp_path / which)
    if which == "metrics":
        recorder._file = full
    else:
        recorder._events._file = full
    with pytest.raises(OSError, match=f"{which} cannot be written: No space left on device"):
        recorder.write("train", 1, {"loss": 1.0})
    recorder.close()
