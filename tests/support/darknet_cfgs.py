"""The .cfg files that Darknet publishes, where they are at hand."""

import os
from pathlib import Path

import pytest

from tests.support import ASSETS

CFGS = Path(os.environ.get("DARKNET_CFG_DIR", ASSETS / "darknet"))
needs_cfgs = pytest.mark.skipif(
    not CFGS.exists(), reason="DARKNET_CFG_DIR, of Darknet's published .cfg files, is not set"
)
