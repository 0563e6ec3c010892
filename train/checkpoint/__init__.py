"""Self-describing checkpoints: `W/checkpoints/<n>/{state/, manifest.json, tokenizer/}`, n finished updates.

Orbax writes the arrays asynchronously and commits a checkpoint, including manifest and tokenizer, by one rename. The
manifest holds a digest of each leaf, computed on device when saving, and a digest of itself. A restore recomputes the
digests and compares shapes and dtypes, so a changed or incomplete checkpoint raises an error.
"""

from train.checkpoint.digests import check_dtypes, digests
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
    "check_dtypes",
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
