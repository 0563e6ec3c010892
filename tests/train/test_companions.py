"""Small files beside a published network: which a run takes along, and what an export makes of them."""

import json
from pathlib import Path

import pytest

from data.text import subwords, tokenizer_reader, tokenizer_writer, tokenizers
from models.pretrained import preprocessing
from train import companions

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
TOOLS = "additional_chat_templates/tools.jinja"
CHAT = [{"role": "user", "content": "the text"}, {"role": "assistant", "content": "of 猫"}]


def hub(where: Path) -> str:
    """The fingerprint of the tokenizer of a folder with a chat template."""
    where.mkdir()
    (where / "tokenizer.json").write_text(subwords.train_bpe(["the text of nobody"], 270).source)
    config = {
        "eos_token": {"content": "<|endoftext|>", "lstrip": False, "__type": "AddedToken"},
        "bos_token": "<|endoftext|>",
        "x": 1,
    }
    config |= {"model_max_length": 64, "padding_side": "left", "tokenizer_class": "Qwen2Tokenizer"}
    (where / "tokenizer_config.json").write_text(json.dumps(config))
    (where / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    (where / "additional_chat_templates").mkdir()
    (where / TOOLS).write_text(TEMPLATE + "tools", "utf-8")
    (where / "additional_chat_templates" / "._tools.jinja").write_bytes(b"\0\5\x16\7")
    (where / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "eos_token_id": [0, 3]}))
    (where / "README.md").write_text("no companion")
    return tokenizers.fingerprint(tokenizer_reader.read_tokenizer(where).description())


def exported(where: Path, files: dict[str, str]) -> Path:
    """A folder as an export writes it, of the tokenizer of `hub`, with files."""
    made = tokenizer_reader.read_tokenizer(where.parent / "hub")
    where.mkdir()
    tokenizer_writer.write_tokenizer(made, where)
    ids = companions.bos_and_eos(files, tokenizer_writer.special_ids(made))
    companions.write(files, where, ids, {})
    return where


def test_files_go_with_their_tokenizer(tmp_path: Path) -> None:
    own = hub(tmp_path / "hub")
    files = companions.from_folder(tmp_path / "hub", own)
    assert set(files) == {"chat_template.jinja", TOOLS, "tokenizer_config.json", "generation_config.json"}
    assert companions.from_folder(tmp_path / "hub", "another") == companions.from_folder(tmp_path / "hub", None) == {}
    assert companions.from_folder(tmp_path / "hub" / "README.md", own) == {}
    assert companions.from_source(None, own) == {}


def test_an_export_has_them_and_its_own(tmp_path: Path) -> None:
    """Its own class of tokenizer; no key that may change an id, and none that is only noted there."""
    out = exported(tmp_path / "out", companions.from_folder(tmp_path / "hub", hub(tmp_path / "hub")))
    assert (out / "chat_template.jinja").read_text("utf-8") == TEMPLATE
    assert (out / TOOLS).read_text("utf-8") == TEMPLATE + "tools"
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["padding_side"], config["bos_token"]) == (64, "left", "<|endoftext|>")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "x" not in config
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": None, "temperature": 0.6, "eos_token_id": [0, 3]}
    bare = exported(tmp_path / "bare", {})
    assert not (bare / "chat_template.jinja").exists()


def test_a_chat_is_written_as_by_transformers(tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    out = exported(tmp_path / "out", companions.from_folder(tmp_path / "hub", hub(tmp_path / "hub")))
    (tmp_path / "hub" / "tokenizer_config.json").write_text(
        (tmp_path / "hub" / "tokenizer_config.json").read_text().replace("Qwen2Tokenizer", "PreTrainedTokenizerFast")
    )
    one, two = (theirs.AutoTokenizer.from_pretrained(path) for path in (tmp_path / "hub", out))
    text = two.apply_chat_template(CHAT, tokenize=False)
    assert text == one.apply_chat_template(CHAT, tokenize=False)
    assert text.startswith("<|endoftext|><|user|>the text<|endoftext|>")
    assert two.apply_chat_template(CHAT) == one.apply_chat_template(CHAT)


@pytest.mark.parametrize("followed", [True, False])
def test_settings_of_images_are_kept_where_they_were_followed(followed: bool, tmp_path: Path) -> None:
    theirs = json.dumps({"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.5], "image_std": 0.5})
    (tmp_path / "preprocessor_config.json").write_text(theirs)
    files = companions.from_folder(tmp_path, None)
    settings = preprocessing.from_folder(tmp_path) | ({} if followed else {"mean": 0.25})
    preprocessing.write(tmp_path, settings, 1)
    companions.write(files, tmp_path, {}, preprocessing.from_folder(tmp_path))
    assert ((tmp_path / "preprocessor_config.json").read_text() == theirs) == followed
    assert preprocessing.from_folder(tmp_path) == settings
