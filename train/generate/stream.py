"""Text out of a language model as it is made: tokens become characters when no later token can change them."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from data.text.tokenizers import Tokenizer
from train.generate import sample
from train.record.ticker import Ticker
from train.verbs.restored import LoadedModel


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


def print_samples(
    opened: LoadedModel,
    *,
    prompt: Sequence[str],
    max_new_tokens: int,
    stop: Sequence[str],
    seed: int,
    timing: bool,
    **how: Any,
) -> None:
    """Print prompts and the texts that a model puts after them: one as it is made, several numbered, one after another.

    `how` are the fields of a Sampling; a text ends at the tokenizer's ends, and before a text of `stop`.
    """
    setup, runtime = opened.setup, opened.setup.runtime
    tokenizer = setup.tokenizer
    assert tokenizer is not None
    ids = [encode_prompt(tokenizer, text) for text in prompt]
    context = setup.model.config.context
    for text, row in zip(prompt, ids, strict=True):
        if len(row) > context:
            runtime.say(f"{text[:20]!r}… is of {len(row):,} tokens, the context of {context:,}: only its end is read")
    pace, sampling = (
        sample.Throughput(runtime.monotonic) if timing else None,
        sample.Sampling(stop=tokenizer.stop_ids, **how),
    )
    key, alone = jax.random.key(seed), len(prompt) == 1
    made = sample.generate(
        setup.model, opened.variables, ids, key, count=max_new_tokens, sampling=sampling, throughput=pace
    )
    made = Ticker(runtime).show_until_first(made)
    runtime.stdout.write(prompt[0] if alone else "")
    parts: list[list[str]] = []
    for new in stream_texts(tokenizer, ids, made, [text for text in stop if text]):
        parts.append(new)
        runtime.stdout.write(new[0] if alone else "")
        runtime.stdout.flush()
    whole = [text + "".join(rows) for text, *rows in zip(prompt, *parts, strict=True)]
    runtime.say("" if alone else "\n\n".join(f"[{i} of {len(whole)}]\n{text}" for i, text in enumerate(whole, 1)))
    if pace:
        runtime.say(f"{pace}; {len(prompt)} at once, {jax.local_devices()[0].device_kind}")
