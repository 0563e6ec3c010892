"""Text out of a language model as it is made: tokens become characters when no later token can change them."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.text.tokenizers import Tokenizer
from train.generate import sample


def stream_texts(
    tokenizer: Tokenizer, prompts: Sequence[np.ndarray], chunks: Iterator[np.ndarray], until: Sequence[str] = ()
) -> Iterator[list[str]]:
    """What each chunk of tokens [B n] adds to the text of each row -> B texts; a row ends before a text of `until`.

    What may be the beginning of a character or of such a text is held back until it is decided.
    """
    before = [tokenizer.decode(p) for p in prompts]  # a decoder may drop the first space of all, so decode on from it
    written: list[list[int]] = [[] for _ in prompts]
    shown, ended = [0] * len(prompts), [False] * len(prompts)

    def more(row: int, last: bool) -> str:
        text = tokenizer.decode([*prompts[row], *written[row]])[len(before[row]) :]
        ends = [at for stop in until if (at := text.find(stop)) >= 0]
        ready = min(ends) if ends else len(text) if last else _stable_length(text, until)
        ended[row] = ended[row] or bool(ends)
        new, shown[row] = text[shown[row] : ready], max(shown[row], ready)
        return new

    for chunk in chunks:
        for row, new in enumerate(chunk):
            written[row] += [] if ended[row] else new[new != sample.FINISHED].tolist()
        yield [more(row, last=False) for row in range(len(prompts))]
        if all(ended):
            return
    yield [more(row, last=True) for row in range(len(prompts))]


def _stable_length(text: str, until: Sequence[str]) -> int:
    """Up to where later tokens change nothing of a text."""
    ready = len(text.rstrip("\ufffd"))  # the rest may be a character cut in two
    partial = [n for stop in until for n in range(1, len(stop)) if text[:ready].endswith(stop[:n])]
    return ready - max(partial, default=0)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt [n]; a text from nothing begins as a document does, after the end of another."""
    ids = np.array([*tokenizer.prefix, *tokenizer.encode(prompt)], np.int32)
    return ids if len(ids) else np.array([tokenizer.eot], np.int32)
