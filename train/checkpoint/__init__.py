"""Checkpoints that explain themselves: `W/checkpoints/<n>/{state/, manifest.json, tokenizer/}`, n finished updates.

Orbax writes the arrays asynchronously and commits a checkpoint by one rename, manifest and tokenizer included. The
manifest holds a digest of each leaf, computed on device at the save, and a digest of itself; a restore computes them
again, and compares shape and dtype too, so that nothing is restored changed, or in part, without a word.
"""

from train.checkpoint.digests import digests
from train.checkpoint.folder import prepare, reason, steps, write_atomic
from train.checkpoint.lock import lock
from train.checkpoint.manifest import CorruptCheckpoint, Manifest, add_metrics, load_manifest, readable_manifests
from train.checkpoint.restore import (
    as_dict,
    first_restorable,
    load_tokenizer,
    quarantine,
    restore,
    restore_leaves,
    select,
    split_name,
)
from train.checkpoint.store import SaveError, Store

__all__ = [
    "CorruptCheckpoint",
    "Manifest",
    "SaveError",
    "Store",
    "add_metrics",
    "as_dict",
    "digests",
    "first_restorable",
    "load_manifest",
    "load_tokenizer",
    "lock",
    "prepare",
    "quarantine",
    "readable_manifests",
    "reason",
    "restore",
    "restore_leaves",
    "select",
    "split_name",
    "steps",
    "write_atomic",
]
