"""Streaming generated text: characters are output as soon as no later token can change them."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.text.tokenizers import Tokenizer
from errors import UsageError, quote
from train.generate import sample


def stream_texts(
    tokenizer: Tokenizer, prompts: Sequence[np.ndarray], chunks: Iterator[np.ndarray], until: Sequence[str] = ()
) -> Iterator[list[str]]:
    """The text that each chunk of tokens [B n] adds to each row -> B strings; a row ends before a string of `until`.

    A suffix that may be an incomplete character, or the start of such a string, is held back until it is resolved.
    """
    before = [tokenizer.decode(p) for p in prompts]  # a decoder may drop a leading space, so the prompt is decoded too
    generated: list[list[int]] = [[] for _ in prompts]
    shown, finished = [0] * len(prompts), [False] * len(prompts)

    def more(row: int, last: bool) -> str:
        text = tokenizer.decode([*prompts[row], *generated[row]])[len(before[row]) :]
        ends = [at for stop in until if (at := text.find(stop)) >= 0]
        ready = min(ends) if ends else len(text) if last else _stable_length(text, until)
        finished[row] = finished[row] or bool(ends)
        new = text[shown[row] : ready]
        shown[row] = max(shown[row], ready)
        return new

    for chunk in chunks:
        for row, new in enumerate(chunk):
            generated[row] += [] if finished[row] else new[new != sample.FINISHED].tolist()
        yield [more(row, last=False) for row in range(len(prompts))]
        if all(finished):
            return
    yield [more(row, last=True) for row in range(len(prompts))]


def _stable_length(text: str, until: Sequence[str]) -> int:
    """The length of the prefix that later tokens cannot change."""
    ready = len(text.rstrip("\ufffd"))  # the end may be an incomplete character
    partial = [n for stop in until for n in range(1, len(stop)) if text[:ready].endswith(stop[:n])]
    return ready - max(partial, default=0)


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """The ids of a prompt [n]. An empty prompt becomes the end-of-text token, as at the start of a document.

    Raises UsageError for a text that UTF-8 cannot hold, with a lone surrogate.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt {quote(prompt)} is no valid Unicode: {error.reason}") from None
    ids = np.array([*tokenizer.prefix, *tokenizer.encode(prompt)], np.int32)
    return ids if len(ids) else np.array([tokenizer.eot], np.int32)
