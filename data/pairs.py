"""Texts and their translations: read from files side by side, and laid out as rows of tokens.

Legend: n pairs, S T tokens of a text and of its translation.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from data import corpora
from data.files import glob_any_case
from data.kinds import Examples, ParallelText, checksum, unknown_split
from data.progress import Tick, silent, track
from data.tokenizers import Tokenizer
from documents import read_lines
from errors import UsageError

MULTIPLE = 8  # lengths are rounded up to it, so that few are compiled


def languages(field: str | None) -> tuple[str, str] | None:
    """The two sides that `en:de` names, the one to translate from first; None where it names no two.

    Raises UsageError where it names one twice.
    """
    first, colon, second = (field or "").partition(":")
    if colon and first == second:
        raise UsageError(f"data.field = {field!r} must name two sides, what to translate from and into")
    return (first, second) if first and colon and second and ":" not in second else None


def from_files(folder: Path, split: str, field: str) -> ParallelText:
    """Pairs of the lines of two files: `train.en`, `train.de`, `test.en` …, or where there are such, files `en`, `de`.

    Of the latter the last tenth is the split `validation`. Raises UsageError where files lack or differ in length.
    """
    both, splits = languages(field), splits_of(folder, field)
    assert both is not None
    if split not in splits:
        known = f"it has {', '.join(splits)}" if splits else f"wanted are {' and '.join(f'{split}.{s}' for s in both)}"
        raise UsageError(f"{folder} has no pairs of files for {field} and the split {split!r}; {known}")
    whole = _have_side_files(folder, both)
    files = [folder / side for side in both] if whole else _by_split(folder, both)[split]
    sides = [read_lines(file) for file in files]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(f"{len(side):,} in {file.name}" for file, side in zip(files, sides, strict=True))
        raise UsageError(f"{folder}: files side by side must have as many lines; there are {counts}")
    if whole:
        cut = len(sides[0]) - len(sides[0]) // 10
        sides = [side[:cut] if split == "train" else side[cut:] for side in sides]
    texts, translations = map(tuple, sides)
    digest = checksum(*(line.encode() + b"\0" for line in texts + translations))
    identity = {"name": folder.name, "split": split, "count": len(texts), "checksum": digest, "field": field}
    return ParallelText(texts, translations, both, identity)


def from_rows(path: Path, split: str, field: str) -> ParallelText:
    """Pairs of two fields of a file's or folder's rows. Raises UsageError as `corpora.load`."""
    both = languages(field)
    assert both is not None
    if split not in corpora.splits_of(path):
        raise unknown_split(path, split, corpora.splits_of(path))
    texts, translations = corpora.columns(path, split, both)
    digest = checksum(*(line.encode() + b"\0" for line in texts + translations))
    identity = {"name": path.name, "split": split, "count": len(texts), "checksum": digest, "field": field}
    return ParallelText(texts, translations, both, identity)


def splits_of(folder: Path, field: str) -> tuple[str, ...]:
    """The splits that a folder's files make, training first."""
    both = languages(field)
    assert both is not None
    if _have_side_files(folder, both):
        return ("train", "validation")
    return tuple(sorted(_by_split(folder, both), key=lambda split: split != "train"))


def _by_split(folder: Path, both: tuple[str, str]) -> dict[str, list[Path]]:
    """The two files of each split that has both, by its name: what stands before the side's, which is in any case."""
    first, second = map(partial(_side_files, folder), both)
    return {split: [first[split], second[split]] for split in first if split in second}


def _side_files(folder: Path, side: str) -> dict[str, Path]:
    """The files of a side by their splits; of two the one with the side as it is given."""
    found = sorted(glob_any_case(folder, f"*.{side.lower()}"), key=lambda path: path.name.endswith(f".{side}"))
    return {path.name[: -len(side) - 1]: path for path in found if path.is_file()}


def _have_side_files(folder: Path, names: tuple[str, str]) -> bool:
    return all((folder / name).is_file() for name in names)


def translation_rows(
    pairs: ParallelText,
    tokenizer: Tokenizer,
    limit: int,
    *,
    truncate: bool,
    pad_to_limit: bool = False,
    parts: int = 1,
    tick: Tick = silent,
) -> Examples:
    """Pairs as rows: source [n S], source_mask [n S]; tokens, targets and weight [n T]; S and T at most `limit`.

    They are those of the longest, up to a multiple of 8 and of `parts`, or where `full` the limit, so that sets can be
    mixed. Both ends are eot; tokens begin with the tokenizer's first prefix, or with eot, and foretell targets. What is
    longer is cut where `cut`, as in an exam, else left out. An empty text or translation is left out of what is learnt
    from.

    Raises UsageError where nothing is left.
    """
    sides = {"tokenising texts": pairs.texts, "tokenising translations": pairs.translations}
    encoded = [[tokenizer.encode(line) for line in track(side, what, tick)] for what, side in sides.items()]
    fit = [truncate or 0 < min(len(a), len(b)) <= max(len(a), len(b)) < limit for a, b in zip(*encoded, strict=True)]
    sources, targets = ([ids for ids, keep in zip(side, fit, strict=True) if keep] for side in encoded)
    if not sources and (pairs.texts or not truncate):
        whole = any(len(a) and len(b) for a, b in zip(*encoded, strict=True))
        longest = f"of at most {limit} tokens with the end; raise data.max_length or model.context"
        raise UsageError(f"{pairs.identity['name']} has no pair {longest if whole else 'of two texts'}")
    end = np.array([tokenizer.eot], np.int32)
    multiple = math.lcm(MULTIPLE, parts)
    lengths = dict(limit=limit, multiple=limit if pad_to_limit else multiple)
    source, mask = _pad([np.concatenate([ids, end])[:limit] for ids in sources], **lengths)
    target, weight = _pad([np.concatenate([ids, end])[:limit] for ids in targets], **lengths)
    begin = np.full((len(target), 1), bos_id(tokenizer), np.int32)
    fields = {"source": source, "source_mask": mask, "tokens": np.concatenate([begin, target[:, :-1]], 1)}
    identity = {**pairs.identity, "rows": len(source)}
    return Examples({**fields, "targets": target, "weight": weight}, len(source), identity, None)


def bos_id(tokenizer: Tokenizer) -> int:
    """The token after which a translation begins."""
    return tokenizer.prefix[0] if tokenizer.prefix else tokenizer.eot


def _pad(ids: list[np.ndarray], limit: int, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids int32 [n T], and 1 where they are [n T]; T is the longest's length, up to a multiple, limit at most."""
    length = min(limit, -(-max(map(len, ids), default=1) // multiple) * multiple)
    tokens, there = np.zeros((len(ids), length), np.int32), np.zeros((len(ids), length), np.float32)
    for row, own in enumerate(ids):
        tokens[row, : len(own)], there[row, : len(own)] = own, 1
    return tokens, there
