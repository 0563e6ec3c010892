"""What several tests share: cases, runs, small folders, networks to compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]  # the repository
ASSETS = ROOT.parent / "shared" / "assets"  # tokenizers and networks that others publish, where they are at hand
