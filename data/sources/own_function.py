"""A source of one's own: `package.file:function` or `path/to/file.py:function`, called with the name of a split.

It returns a dict of arrays by field (perhaps with `classes`, the number of classes of `label`), a list of texts, or a
Source. `function.splits` may list the splits. A KeyError of the split's name says that there is no such split.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import imports
from data.source import Source
from data.sources import arrays
from data.sources.reader import Reader, Request, checked_reader
from data.types import Examples, ParallelText, Texts, texts
from errors import UsageError, quote

VERSIONS = ("experimental_latest",)  # what TFDS takes after a colon
LEGAL = "a dict of arrays by field, a list of texts, or a Source"


def find(request: Request) -> Reader | None:
    """The reader of a function. Raises UsageError if there is no such function."""
    match = imports.NAME.fullmatch(request.name)
    if match is None or match["name"] in VERSIONS or request.path.exists():
        return None
    where, name = match["where"], match["name"]
    if "." not in where and not imports.has_module(where):
        return None  # TFDS has names with a colon too
    key = f"config key 'data.name' = {request.name!r}"
    function, title = imports.load_name(request.name, key), f"{Path(where).name}:{name}"

    def load(split: str) -> Source:
        with imports.code_errors(key, where):
            made = _call(function, title, split)
        return _source(made, title, split)

    known = getattr(function, "splits", ())
    if not isinstance(known, list | tuple) or not all(isinstance(split, str) for split in known):
        raise UsageError(f"{title}.splits is {quote(known)}, not a tuple of names")
    known = tuple(known)
    return checked_reader(request.name, lambda: known, load) if known else Reader(lambda: (), load)


def _call(function: Callable[[str], object], title: str, split: str) -> object:
    try:
        return function(split)
    except KeyError as error:
        if error.args != (split,):
            raise
        raise UsageError(f"{title} has no split {split!r} (KeyError)") from None


def _source(made: object, title: str, split: str) -> Source:
    """A function's result as a source, with its name, split and length in the identity. Raises UsageError."""
    where = f"{title}, split {split!r}"
    if isinstance(made, Mapping):
        fields = {str(k): _array(f"{where}: {k}", v) for k, v in made.items() if k != "classes"}
        return arrays.from_arrays(title, split, fields, _class_count(where, made.get("classes")))
    if isinstance(made, list | tuple):
        for i, text in enumerate(made):
            if not isinstance(text, str) or not text:
                raise UsageError(f"{where}: item {i:,} of its list is {quote(text)}, not a text")
        if not made:
            raise UsageError(f"{where} has no texts")
        return texts(title, split, made)
    if not isinstance(made, Source):
        raise UsageError(f"{where} is {quote(made)}; legal: {LEGAL}")
    if not len(made):
        raise UsageError(f"{where} has no rows")
    if isinstance(made, Examples) and (labels := made.known_labels) is not None:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (made.classes or 0):
            raise UsageError(f"{where} has labels from {low} to {high}, and classes = {made.classes}")
    if isinstance(made, Examples | Texts | ParallelText):
        made = replace(made, identity={**made.identity, "name": title, "split": split, "count": len(made)})
    for key in ("name", "split", "count", "checksum"):  # a checksum changes whenever the content does
        if key not in made.identity:
            raise UsageError(f"{where} has no {key} in its identity, {quote(made.identity)}")
    return made


def _array(where: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # as lists of different lengths
        raise UsageError(f"{where} is no array: {error}") from None


def _class_count(where: str, value: object) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
        raise UsageError(f"{where}: classes is {quote(value)}, not a number of classes")
    return None if value is None else int(value)
