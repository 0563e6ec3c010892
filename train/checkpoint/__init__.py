"""Checkpoints that explain themselves: `W/checkpoints/<n>/{state/, manifest.json, tokenizer/}`, n finished updates.

Orbax writes the arrays asynchronously and commits a checkpoint by one rename, manifest and tokenizer included. The
manifest holds a digest of each leaf, computed on device at the save, and a digest of itself; a restore computes them
again, and compares shape and dtype too, so that nothing is restored changed, or in part, without a word.
"""

from train.checkpoint.folder import prepare, reason, steps, write_whole
from train.checkpoint.lock import lock
from train.checkpoint.manifest import Damaged, Manifest, load_manifest, note_metrics, readable
from train.checkpoint.restore import (
    as_dict,
    first_good,
    load_tokenizer,
    restore,
    restore_leaves,
    select,
    set_aside,
    split_name,
)
from train.checkpoint.store import Store, Unsaved
from train.digests import digests

__all__ = [
    "Damaged",
    "Manifest",
    "Store",
    "Unsaved",
    "as_dict",
    "digests",
    "first_good",
    "load_manifest",
    "load_tokenizer",
    "lock",
    "note_metrics",
    "prepare",
    "readable",
    "reason",
    "restore",
    "restore_leaves",
    "select",
    "set_aside",
    "split_name",
    "steps",
    "write_whole",
]
