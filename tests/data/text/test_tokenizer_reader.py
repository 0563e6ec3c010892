"""Folders of tokenizers as others publish them: what stands beside a vocabulary counts, as in transformers."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from data.sources import builtin
from data.text import added_tokens, subwords, tokenizer_reader
from errors import UsageError

CORPUS = ["the cat sat on the mat, the cat ate", "naïve café – the end"] * 3
TEXTS = [
    *("the cat sat", "<user> the cat <bot> sat", "<user>the<bot>", "a <USER> <bot>.", "the cat  <bot>  sat", " the"),
    *(
        "<bot>s the",
        "a cap, captain",
        "the<user>",
        "<user>",
        "",
        "a<bot><bot> b",
        "café <x y> the",
        "<sep> a [MASK] b </s> c",
    ),
]
FLAGGED: list[dict[str, Any]] = [
    {"content": "<user>"},
    {"content": "<bot>", "lstrip": True, "rstrip": True},
    {"content": "cap", "single_word": True},
    {"content": "<X Y>", "normalized": True},
    {"content": "<sep>", "special": True},
]


@pytest.fixture(scope="module")
def sentence_piece() -> bytes:
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (requirements-parity.txt)")
    written = io.BytesIO()
    corpus = builtin.BUILTIN["pydoc_text"][0]("train").documents[:30]
    lines = [line for document in corpus for line in document.split("\n") if line.strip()]
    shape = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 2}
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, num_threads=1, **shape, **rules
    )
    return written.getvalue()


def write(folder: Path, kind: str, model: bytes = b"", **settings: Any) -> int:
    """Write a vocabulary and its settings -> how many ids it has."""
    classes = {"gpt2": "GPT2Tokenizer", "bert": "BertTokenizer", "llama": "LlamaTokenizer"}
    names = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    if kind == "bert":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz<>.,é–"]
        words += ["the", "cat", "sat", "##s", "##at", "mat"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
        count, names = len(words), {}
    elif kind == "llama":
        (folder / "tokenizer.model").write_bytes(model)
        count, names = 400, {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    else:
        file = json.loads(subwords.train_bpe(CORPUS, 280).source)
        count = 280
        if kind == "gpt2":
            merges = "\r\n".join(" ".join(pair) for pair in file["model"]["merges"])
            (folder / "vocab.json").write_text(json.dumps(file["model"]["vocab"]))
            (folder / "merges.txt").write_text(f"#version: 0.2\r\n{merges}\r\n", "utf-8", newline="")
        else:
            (folder / "tokenizer.json").write_text(json.dumps(file))
    settings = {"tokenizer_class": classes.get(kind, "PreTrainedTokenizerFast"), **names, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return count


def theirs(folder: Path) -> Any:
    library = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")
    return library.AutoTokenizer.from_pretrained(str(folder))


def agree(folder: Path, texts: list[str]) -> None:
    """The same ids as transformers for texts, of which those that spell special tokens are left out."""
    ours, reference = tokenizer_reader.read_tokenizer(folder), theirs(folder)
    for text in texts:
        assert ours.encode(text).tolist() == reference.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("legacy", [True, False], ids=["added_tokens.json", "added_tokens_decoder"])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama", "json"])
def test_added_tokens_are_those_of_transformers(kind: str, legacy: bool, tmp_path: Path, request) -> None:
    model = request.getfixturevalue("sentence_piece") if kind == "llama" else b""
    count = write(tmp_path, kind, model)
    flags = dict.fromkeys(added_tokens.FLAGS, False)
    ids = {token["content"]: count + i for i, token in enumerate(FLAGGED)}
    if legacy:
        (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<sep>"]}))
    else:
        decoder = {str(count + i): {**flags, **token} for i, token in enumerate(FLAGGED)}
        write(tmp_path, kind, model, added_tokens_decoder=decoder)
    ours = tokenizer_reader.read_tokenizer(tmp_path)
    assert ours.vocab == count + len(ids)
    assert ours.encode("<user>").tolist() == [ids["<user>"]]
    assert ids["<sep>"] in ours.special
    assert ids["<user>"] not in ours.special
    agree(tmp_path, [text for text in TEXTS if "<sep>" not in text and not (kind == "llama" and text[:1] == " ")])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("first", [True, False, None])
def test_a_space_before_a_text_is_put_as_asked(kind: str, first: bool | None, tmp_path: Path, request) -> None:
    model = request.getfixturevalue("sentence_piece") if kind == "llama" else b""
    write(tmp_path, kind, model, **({} if first is None else {"add_prefix_space": first}))
    ours = tokenizer_reader.read_tokenizer(tmp_path)
    put = first if first is not None else kind == "llama"
    assert (ours.encode("the cat").tolist() == ours.encode(" the cat").tolist()) == (put and kind == "gpt2")
    agree(tmp_path, TEXTS[:5])


def test_a_space_before_a_text_beside_a_tokenizer_json(tmp_path: Path) -> None:
    """As in transformers, a class of byte-level tokenizers heeds the setting, the generic class does not."""
    for name, put in (("GPT2Tokenizer", True), ("PreTrainedTokenizerFast", False)):
        write(tmp_path, "json", add_prefix_space=True, tokenizer_class=name)
        ours = tokenizer_reader.read_tokenizer(tmp_path)
        assert (ours.encode("the cat").tolist() == ours.encode(" the cat").tolist()) == put
        agree(tmp_path, TEXTS[:1])


def test_each_text_between_added_tokens_of_a_legacy_tokenizer_begins_with_a_space(
    sentence_piece: bytes, tmp_path: Path
) -> None:
    decoder = {"400": {"content": "<user>", "special": False}}
    found = []
    for legacy in (True, False):
        write(tmp_path, "llama", sentence_piece, added_tokens_decoder=decoder, legacy=legacy)
        ours = tokenizer_reader.read_tokenizer(tmp_path)
        alone = ours.encode("the").tolist()
        found.append(ours.encode("<user>the").tolist() == [400, *alone])
    assert found == [True, False]


def test_lines_of_a_vocabulary_end_at_line_feeds_only(tmp_path: Path) -> None:
    """Other characters that `str.splitlines` cuts at are tokens, and those behind keep their ids."""
    odd = ["\u2028", "\u0085", "\x1c", "\u2029"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *odd, "the", "cat"]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_bytes(end.join([*words, ""]).encode())
        made = tokenizer_reader.read_tokenizer(tmp_path)
        assert made.encode("the cat").tolist() == [9, 10]
        assert made.vocab == 11
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    agree(tmp_path, ["the cat the"])


def test_a_tokenizer_json_that_has_all_added_tokens_stays_as_it_is(tmp_path: Path) -> None:
    """So does what a checkpoint knows it by."""
    write(tmp_path, "json")
    bare = tokenizer_reader.read_tokenizer(tmp_path)
    decoder = {"0": {"content": "<|endoftext|>", "special": True, "normalized": True}}
    write(tmp_path, "json", added_tokens_decoder=decoder)
    (tmp_path / "added_tokens.json").write_text('{"<|endoftext|>": 0}')
    assert tokenizer_reader.read_tokenizer(tmp_path).source == bare.source


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("gpt2", {"added_tokens_decoder": {"290": {"content": "<user>"}}}, "'<user>' has the id 290, .* gives it 280"),
        ("json", {"added_tokens_decoder": {"5": {"content": "<user>"}}}, "has the id of .*, 5"),
        ("gpt2", {"added_tokens_decoder": {"280": {"content": "the"}}}, "'the' has the id 280, but the vocabulary's"),
        ("bert", {"added_tokens_decoder": {"x": {"content": "<user>"}}}, "'x' is not the id"),
        ("bert", {"added_tokens_decoder": {"43": "<user>"}}, "entry 43 is '<user>', not a token"),
        ("bert", {"added_tokens_decoder": ["<user>"]}, "not tokens by their ids"),
        ("bert", {"added_tokens_decoder": {"43": {"content": "<u>", "lstrip": "no"}}}, "must be true or false"),
        ("bert", {"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
        ("gpt2", {"add_prefix_space": "yes"}, "add_prefix_space is 'yes'"),
        (
            "gpt2",
            {"tokenizer_class": "Qwen2Tokenizer"},
            "'Qwen2Tokenizer', which has rules that this file does not contain",
        ),
        (
            "bert",
            {"tokenizer_class": "MPNetTokenizer"},
            "'MPNetTokenizer', which has rules that this file does not contain",
        ),
        (
            "llama",
            {"tokenizer_class": "XLMRobertaTokenizer"},
            "'XLMRobertaTokenizer', which has rules that this file does not contain",
        ),
    ],
)
def test_what_does_not_fit_a_vocabulary_is_refused(
    kind: str, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write(tmp_path, kind, b"", **settings)
    with pytest.raises(UsageError, match=says):
        tokenizer_reader.read_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "3"])
def test_hostile_json_is_refused(name: str, content: str, tmp_path: Path) -> None:
    write(tmp_path, "gpt2")
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as refused:
        tokenizer_reader.read_tokenizer(tmp_path)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_pattern_that_backtracks_without_end_is_refused(tmp_path: Path) -> None:
    """The library panics, which is no Exception; half of a surrogate pair is no text to it either."""
    file = json.loads(subwords.train_bpe(CORPUS, 260).source)
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$|(a|aa)+b"}, "behavior": "Isolated", "invert": False}
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, file["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    made = tokenizer_reader.read_tokenizer(tmp_path)
    for text in ("a" * 60 + "c", "\ud800"):
        with pytest.raises(UsageError, match="this tokenizer cannot encode the text: "):
            made.encode(text)


def test_a_path_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "json")
    assert tokenizer_reader.has_tokenizer("~")
    assert (
        tokenizer_reader.read_tokenizer("~")
        == tokenizer_reader.read_tokenizer("~/tokenizer.json")
        == tokenizer_reader.read_tokenizer(tmp_path)
    )
