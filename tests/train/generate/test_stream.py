"""Text as it is written: characters cut in two, texts that end the writing, and first spaces."""

import io
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.text import subwords, tokenizers
from train.generate import stream
from train.generate.sample import FINISHED
from train.runtime import Runtime
from train.verbs import sample as sample_verb
from train.verbs.load_model import LoadedModel

BYTE = tokenizers.ByteTokenizer()


def chunks(rows: list[str], size: int) -> list[np.ndarray]:
    """Bytes of texts, in chunks, FINISHED after the end of each."""
    ids = [BYTE.encode(row) for row in rows]
    longest = max(map(len, ids))
    whole = np.stack([np.pad(i, (0, longest - len(i)), constant_values=FINISHED) for i in ids])
    return [whole[:, at : at + size] for at in range(0, longest, size)]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_what_is_shown_is_never_taken_back(size: int) -> None:
    """Whole characters alone, and in the end all of them, broken ones as U+FFFD."""
    rows = ["naïve 🙂 – café", "日本語", "x"]
    prompts = [BYTE.encode("é "), BYTE.encode("a"), BYTE.encode("🙂")]
    parts = list(stream.stream_texts(BYTE, prompts, iter(chunks(rows, size))))
    assert ["".join(p[i] for p in parts) for i in range(3)] == rows
    assert not any("\ufffd" in new for part in parts for new in part)
    cut = np.array([list("é".encode())[:1]])
    assert "".join(p[0] for p in stream.stream_texts(BYTE, prompts[:1], iter([cut]))) == "\ufffd"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_text_ends_before_what_stops_it(size: int) -> None:
    """Wherever chunks are cut, and nothing of it is shown before it is decided; rows without it go on."""
    rows = ["one\n\nQ: two", "one\nQ two \n", "\n\n"]
    prompts = [BYTE.encode("a\n")] * 3
    parts = list(stream.stream_texts(BYTE, prompts, iter(chunks(rows, size)), ["\n\n", "Q:"]))
    assert ["".join(p[i] for p in parts) for i in range(3)] == ["one", "one\nQ two \n", ""]


def test_writing_ends_when_all_have() -> None:
    made = iter(chunks(["a.bcdef", "xy.zabc"], 2))
    list(stream.stream_texts(BYTE, [BYTE.encode("p")] * 2, made, ["."]))
    assert len(list(made)) == 2  # of four


def test_the_first_space_stays() -> None:
    """A decoder that drops the first space of all does not drop that of what is written."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    coder = Tokenizer(models.BPE({"</s>": 0, "▁": 1, "a": 2, "▁a": 3}, [("▁", "a")]))
    coder.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    coder.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = subwords.SubwordTokenizer(coder.to_str(), 0)
    assert tokenizer.encode("a").tolist() == [3]
    assert tokenizer.decode([3]) == "a"
    written = stream.stream_texts(tokenizer, [tokenizer.encode("a")], iter([np.array([[3, 2]])]))
    assert "".join(part[0] for part in written) == " aa"


def test_a_text_from_nothing_begins_after_the_end_of_another() -> None:
    """An empty prompt is the end-of-text token, or what the tokenizer puts before every text."""
    assert stream.encode_prompt(BYTE, "").tolist() == [BYTE.eot]
    assert stream.encode_prompt(BYTE, "a").tolist() == [97]
    made = subwords.train_bpe(["some text"], 260)
    assert stream.encode_prompt(made, "").tolist() == [made.eot]
    first = subwords.SubwordTokenizer(made.source, made.eot, prefix=(5,))
    assert stream.encode_prompt(first, "").tolist() == [5]


def test_several_prompts_are_numbered_and_timed_by_a_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, steady, paces = (lambda: 7.0), (lambda: 1.0), []

    def generate(*_: Any, throughput: Any, **__: Any) -> Any:
        paces.append(throughput)
        return iter(chunks(["xy", "z"], 1))

    monkeypatch.setattr(stream.sample, "generate", generate)
    out = io.StringIO()
    model = SimpleNamespace(config=SimpleNamespace(context=9))
    runtime = Runtime(wall, {}, out, monotonic=steady)
    setup = SimpleNamespace(runtime=runtime, tokenizer=BYTE, model=model, activate=nullcontext)
    opened: Any = object.__new__(LoadedModel)
    vars(opened).update(name="w", setup=setup, eval_variables={"": {}})
    sample_verb.print_samples(
        opened, prompt=["ab", "c"], max_new_tokens=2, stop=[], seed=0, timing=True, temperature=0.0
    )
    assert out.getvalue().startswith("[1 of 2]\nabxy\n\n[2 of 2]\ncz\n")
    assert [pace.clock for pace in paces] == [steady]
