"""Text and JSON of others: each fault is one short line that names the file, whichever reader meets it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import models
from data.text import subwords, tokenizer_reader
from documents import read_lines, read_rows, read_settings, split_lines
from errors import UsageError
from models.pretrained import preprocessing
from models.pretrained.formats.darknet_weights import header
from models.pretrained.formats.safetensors import TensorReader

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 137472\n"
FAULTS: dict[str, tuple[bytes, str]] = {
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep object": (b'{"a":' * 100_000, "nested too deeply"),
    "Latin-1": (b'{"a": "\xe9"}', "not UTF-8 text (byte 7: "),
    "torn": (b'{"a": 1', "cannot be read as JSON"),
    "empty": (b"", "cannot be read as JSON"),
    "long number": (b'{"a": ' + b"1" * 10_000 + b"}", "cannot be read as JSON"),
    "list": (b"[1]", "must be a JSON object with settings, not list"),
    "twice": (b'{"' + b"a" * 5_000 + b'": 1, "' + b"a" * 5_000 + b'": 2}', "appears twice"),
    "pointer": (POINTER, "Git LFS pointer"),
}


def read_shards(folder: Path) -> Any:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    return models.load_pretrained(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "config.json": models.load_pretrained,
    "model.safetensors.index.json": read_shards,
    "tokenizer_config.json": tokenizer_reader.read_tokenizer,
    "special_tokens_map.json": tokenizer_reader.read_tokenizer,
    "generation_config.json": tokenizer_reader.read_tokenizer,
    "preprocessor_config.json": preprocessing.from_folder,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network with a tokenizer."""
    where = tmp_path_factory.mktemp("documents") / "hub"
    model = models.build("gpt", vocab=300, width=8, depth=1, heads=1, context=8)
    models.save_pretrained(model, model.init(jax.random.key(0)), where)
    (where / "tokenizer.json").write_text(subwords.train_bpe(["a text"], 257).source)
    return where


@pytest.mark.parametrize("name", READERS)
def test_a_fault_of_a_file_is_one_line_that_names_it(name: str, saved: Path, tmp_path: Path) -> None:
    for i, (content, says) in enumerate(FAULTS.values()):
        folder = shutil.copytree(saved, tmp_path / f"hub{i}")
        (folder / name).write_bytes(content)
        with pytest.raises(UsageError) as caught:
            READERS[name](folder)
        said = str(caught.value)
        assert str(folder / name) in said
        assert says in said
        assert "\n" not in said
        assert len(said) < len(str(folder)) + 300
        shutil.rmtree(folder)


def test_an_id_that_no_token_has_is_refused(saved: Path, tmp_path: Path) -> None:
    """With the file: one of 20 digits fits no array."""
    folder = shutil.copytree(saved, tmp_path / "hub")
    file = folder / "generation_config.json"
    file.write_text(f'{{"eos_token_id": [0, {10**20}]}}')
    with pytest.raises(UsageError, match=rf"{file}: eos_token_id = {10**20} is not the id of a token"):
        tokenizer_reader.read_tokenizer(folder)


def test_what_does_no_harm_is_read(tmp_path: Path) -> None:
    """A byte-order mark, and a key that stands twice with one value."""
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1], "a": [1], "b": "\xc3\xa9"}')
    assert read_settings(file) == {"a": [1], "b": "é"}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", TensorReader),
        ("weights.npz", TensorReader),
        ("net.weights", header),
        ("tokenizer.json", tokenizer_reader.read_tokenizer),
        ("vocab.txt", tokenizer_reader.read_tokenizer),
        ("tokenizer.model", tokenizer_reader.read_tokenizer),
    ],
)
def test_a_pointer_of_git_lfs_is_named(name: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(POINTER)
    for path in (file, tmp_path):
        if path.is_file() or read is not header:
            with pytest.raises(UsageError, match=r"Git LFS pointer, not the file itself.*`git lfs pull`") as caught:
                read(path)
            assert str(file) in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UsageError, match="not a regular file"):
        read_settings(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("\n", [""]),
        ("a", ["a"]),
        ("a\r\nb\n", ["a", "b"]),
        ("a\rb\n\nc", ["a\rb", "", "c"]),
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\n", ["a\u2028b\u0085c\x0bd\x0ce\x1cf"]),
    ],
)
def test_lines_end_at_line_feeds(text: str, lines: list[str]) -> None:
    assert split_lines(text) == lines


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text".encode("utf-16"), "is UTF-16 text"),
        ("text".encode("utf-32"), "is UTF-32 text"),
        ("text".encode("utf-16-le"), "byte 1 is NUL"),
        (b"caf\xe9 au lait", r"not UTF-8 text \(byte 3: "),
        (POINTER, "Git LFS"),
        (b"a\rb\r", "CR only"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UsageError, match=rf"x\.txt .*{says}"):
        read_lines(tmp_path / "x.txt")
    for path, says in ((tmp_path, "not a regular file"), (tmp_path / "nowhere", "No such file")):
        with pytest.raises(UsageError, match=says):
            read_lines(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (r'{"a": ["\ud800"]}', "half of a surrogate pair"),
        ('{"a": 1, "b": 2, "a": 3}', "'a. appears twice"),
        ('{"a": 1,}', "cannot be read as JSON"),
        ("9" * 5000, "cannot be read as JSON"),
    ],
)
def test_a_line_that_is_no_json_is_named(line: str, says: str, tmp_path: Path) -> None:
    """Empty lines count, and are passed over."""
    (tmp_path / "x.jsonl").write_text(f'\ufeff{{"a": "\\ud83d\\ude42"}}\n\n{line}\n', "utf-8")
    rows = read_rows(tmp_path / "x.jsonl")
    assert next(rows) == (f"{tmp_path / 'x.jsonl'}, line 1", {"a": "🙂"})
    with pytest.raises(UsageError, match=rf"x\.jsonl, line 3 .*{says}") as refused:
        next(rows)
    assert len(str(refused.value)) < 300 + len(str(tmp_path))
