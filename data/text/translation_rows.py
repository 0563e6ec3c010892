"""Parallel text, tokenised to rows for encoder-decoders.

Legend: n pairs, S T tokens of a text and of its translation.
"""

import math
from collections.abc import Sequence

import numpy as np

from data.fields import Fields
from data.progress import Tick, silent, track
from data.text.packing import pad_rows
from data.text.tokenizers import Tokenizer
from errors import UsageError

MULTIPLE = 8  # lengths are rounded up to a multiple of it, so that few shapes are compiled


def make(
    texts: Sequence[str],
    translations: Sequence[str],
    tokenizer: Tokenizer,
    limit: int,
    *,
    truncate: bool,
    pad_to_limit: bool = False,
    parts: int = 1,
    name: str = "",
    tick: Tick = silent,
) -> Fields:
    """Pairs as rows: source [n S], source_mask [n S]; tokens, targets and weight [n T]; S and T at most `limit`.

    S and T are those of the longest row, rounded up to a multiple of 8 and of `parts`, or `limit` if `pad_to_limit` (so
    that data sets can be mixed). source and targets end with eot. tokens are targets shifted right, after `bos_id`.
    With `truncate`, as in an evaluation, longer pairs are cut; otherwise pairs that are longer or have an empty side
    are dropped.

    Raises UsageError if no pair is left.
    """
    sources = [tokenizer.encode(text) for text in track(texts, "tokenising texts", tick)]
    targets = [tokenizer.encode(text) for text in track(translations, "tokenising translations", tick)]
    pairs = list(zip(sources, targets, strict=True))
    kept = [(a, b) for a, b in pairs if truncate or (len(a) and len(b) and max(len(a), len(b)) < limit)]
    if not kept and (pairs or not truncate):
        has_pairs = any(len(a) and len(b) for a, b in pairs)
        fitting = f"of at most {limit} tokens with the end; raise data.max_length or model.context"
        raise UsageError(f"{name} has no pair {fitting if has_pairs else 'of two texts'}")
    end = np.array([tokenizer.eot], np.int32)
    multiple = limit if pad_to_limit else math.lcm(MULTIPLE, parts)
    source, mask = pad_rows([np.concatenate([a, end])[:limit] for a, _ in kept], limit, multiple)
    target, weight = pad_rows([np.concatenate([b, end])[:limit] for _, b in kept], limit, multiple)
    begin = np.full((len(target), 1), bos_id(tokenizer), np.int32)
    tokens = np.concatenate([begin, target[:, :-1]], 1)
    return {"source": source, "source_mask": mask, "tokens": tokens, "targets": target, "weight": weight}


def bos_id(tokenizer: Tokenizer) -> int:
    """The first token of the decoder's input: the tokenizer's first prefix token, otherwise eot."""
    return tokenizer.prefix[0] if tokenizer.prefix else tokenizer.eot
