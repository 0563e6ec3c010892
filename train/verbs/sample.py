"""The verb `sample`: prompts and the texts that a model continues them with."""

from collections.abc import Sequence
from typing import Any

import jax

from train.generate import sample
from train.generate.stream import encode_prompt, stream_texts
from train.record.ticker import Ticker
from train.verbs.load_model import LoadedModel


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
    """Print prompts with generated continuations: a single one while it is generated, several numbered at the end.

    `how` are fields of Sampling. A text ends at an end token of the tokenizer, or before a string of `stop`.
    """
    setup, runtime = opened.setup, opened.setup.runtime
    tokenizer = setup.tokenizer
    assert tokenizer is not None
    ids = [encode_prompt(tokenizer, text) for text in prompt]
    context = setup.model.config.context
    for text, row in zip(prompt, ids, strict=True):
        if len(row) > context:
            runtime.say(f"{text[:20]!r}… has {len(row):,} tokens, the context {context:,}: only its end is used")
    pace = sample.Throughput(runtime.monotonic) if timing else None
    sampling = sample.Sampling(stop=tokenizer.stop_ids, **how)
    key, alone = jax.random.key(seed), len(prompt) == 1
    with setup.activate():
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
