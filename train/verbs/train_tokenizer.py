"""Training a tokenizer on a data set."""

import os
from pathlib import Path

from data import sources
from data.progress import track
from data.text.subwords import train_bpe
from errors import UsageError
from train.record.ticker import Ticker
from train.runtime import Runtime


def train_tokenizer(name: str, split: str, field: str | None, size: int, to: str, runtime: Runtime) -> None:
    """Train a byte-level BPE on a data set's texts, write it, and print its bytes per token.

    Raises UsageError for a data set without text, an existing output file, and a size that the text cannot reach.
    """
    file = Path(to)
    if file.exists():
        raise UsageError(f"--output={to} exists; give another file")
    source = sources.load(name, split, field=field, data_dir=runtime.environ.get("TFDS_DATA_DIR"))
    if not source.documents:
        raise UsageError(f"data set {name!r} has no text to train a tokenizer on")
    ticker = Ticker(runtime)
    made = train_bpe(track(source.documents, "counting words of documents", ticker, then="joining tokens"), size)
    if made.vocab < size:
        raise UsageError(
            f"--vocab_size={size}: the text gives {made.vocab} tokens at most, having no pair left to join"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(made.source, "utf-8")
    os.replace(part, file)
    tokens = sum(len(made.encode(document)) for document in track(source.documents, "tokenising documents", ticker))
    count = sum(len(document.encode()) for document in source.documents)
    runtime.say(f"{to}: {made.vocab:,} tokens, {count / max(tokens, 1):.3f} bytes per token on {name}, {split}")
