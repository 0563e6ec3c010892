"""The listing of families and their sizes."""

import models
from train.record import summary


def list_families() -> list[str]:
    """One line per family, followed by its published sizes with their parameter counts."""
    lines = []
    for name, module in models.FAMILIES.items():
        lines.append(f"{name:<12} {(module.__doc__ or '').splitlines()[0]}")
        lines += [f"    {size:<18} {summary.parameter_counts(models.build(name, size))}" for size in module.SIZES]
    return lines
