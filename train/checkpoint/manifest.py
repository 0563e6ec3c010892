"""`manifest.json`: the description of a checkpoint, with a digest of itself."""

import hashlib
import json
import re
from collections.abc import Callable
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp

from errors import UsageError
from train.checkpoint.folder import checkpoint_dir, read_text, steps, write_atomic

SCHEMA = 2  # 1 had no digest
Manifest = dict[str, Any]

FIELDS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "config": (dict,),
    "table": (dict,),
    "versions": (dict,),
    "revision": (str, NoneType),
    "mesh": (dict,),
    "phases": (list,),
    "history": (list,),
    "data": (list,),
    "tokenizer": (str, NoneType),
    "classes": (list, NoneType),
    "metrics": (dict, NoneType),
    "state": (dict,),
}
ENTRIES: dict[str, dict[str, type]] = {  # the keys of the entries of FIELDS that are lists or dicts of entries
    "table": {"shape": list, "axes": str},
    "phases": {"from_step": int, "batch_size": int, "weights": list},
    "history": {"from_step": int, "changes": list},
    "state": {"shape": list, "dtype": str, "digest": str},
}


class CorruptCheckpoint(RuntimeError):
    """A checkpoint whose files differ from what was saved."""


def dump_manifest(manifest: Manifest) -> str:
    """The text of a manifest, with its schema and digest."""
    body = json.loads(json.dumps({**manifest, "schema": SCHEMA}))
    return json.dumps({**body, "digest": manifest_digest(body)}, indent=1)


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of a manifest without its digest, keys sorted."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def load_manifest(workdir: str, step: int) -> Manifest:
    """The manifest of a checkpoint.

    Raises CorruptCheckpoint if it cannot be read or fails its digest, UsageError for a newer schema.
    """
    where = f"checkpoint {step} of {workdir}"
    try:
        manifest = json.loads(read_text(checkpoint_dir(workdir) / str(step) / "manifest.json"))
        schema, digest = manifest["schema"], manifest.get("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(f"{where} is damaged: its manifest.json cannot be read ({error})") from None
    if schema == 1 and digest is None:
        manifest = {"history": [], "classes": None, **manifest}
    elif digest != manifest_digest(manifest) or type(schema) is not int:
        raise CorruptCheckpoint(f"{where} is damaged: its manifest.json differs from its digest")
    elif schema != SCHEMA:
        raise UsageError(f"{where} has schema {schema}; this version reads {SCHEMA} and 1")
    problem = _find_problem(manifest, step)
    if problem:
        raise CorruptCheckpoint(f"{where} is damaged: in its manifest.json {problem}")
    return manifest


def _find_problem(manifest: Manifest, step: int) -> str | None:
    """The first fault in the structure of a manifest, or None."""
    for name, kinds in FIELDS.items():
        if name not in manifest:
            return f"{name} is missing"
        if type(manifest[name]) not in kinds:
            return f"{name} is not a {kinds[0].__name__}"
    for name, fields in ENTRIES.items():
        entries = manifest[name].values() if isinstance(manifest[name], dict) else manifest[name]
        for entry in entries:
            if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in fields.items()):
                return f"an entry of {name} does not have the fields {', '.join(fields)}"
    if manifest["step"] != step:
        return f"step is {manifest['step']}"
    for name in ("phases", "state"):
        if not manifest[name]:
            return f"{name} is empty"
    if not all(type(value) in (int, float) for value in (manifest["metrics"] or {}).values()):
        return "a value of metrics is not a number"
    for name, leaf in manifest["state"].items():
        if not all(type(size) is int and size >= 0 for size in leaf["shape"]):
            return f"the shape of {name} is {leaf['shape']}"
        if not _is_dtype(leaf["dtype"]):
            return f"the dtype of {name} is {leaf['dtype']!r}"
        if not re.fullmatch(r"[0-9a-f]{16}", leaf["digest"]):
            return f"the digest of {name} is {leaf['digest']!r}"
    return None


def _is_dtype(name: str) -> bool:
    try:
        return jnp.dtype(name).name == name
    except TypeError:
        return False


def readable_manifests(workdir: str, say: Callable[[str], None] = lambda line: None) -> dict[int, Manifest]:
    """The readable manifests by step, newest first. Corrupt ones are reported by `say`."""
    found = {}
    for step in reversed(steps(workdir)):
        try:
            found[step] = load_manifest(workdir, step)
        except CorruptCheckpoint as error:
            say(f"{error}; skipping it")
    return found


def add_metrics(workdir: str, step: int, metrics: dict[str, float]) -> None:
    """Add metrics, computed after a checkpoint was saved, to its manifest. Only process 0 writes."""
    if jax.process_index():
        return
    manifest = {**load_manifest(workdir, step), "metrics": metrics or None}
    write_atomic(checkpoint_dir(workdir) / str(step) / "manifest.json", dump_manifest(manifest))
