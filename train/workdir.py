"""The one spelling of a workdir."""

import os
from pathlib import Path

from errors import UsageError

STORES = ("gs", "s3", "az")  # schemes of object storage that etils.epath supports


def normalize_workdir(name: str | None) -> str:
    """The path of a workdir, or of a checkpoint in it, without `~`, `..` and trailing slashes; a URL is unchanged.

    Raises UsageError for no name, and for a URL of another storage than STORES.
    """
    if not name:
        raise UsageError("--workdir is missing: the folder of the run, as --workdir=runs/a")
    scheme, remote, _ = name.partition("://")
    if remote and scheme not in STORES:
        stores = ", ".join(f"{store}://" for store in STORES)
        raise UsageError(f"--workdir={name} must be a local path, or start with one of {stores}")
    if remote:
        return name
    workdir = os.path.expanduser(name)
    linked = ".." in Path(workdir).parts  # after a symbolic link, .. differs from the text's parent
    return os.path.realpath(workdir) if linked else os.path.normpath(workdir)
