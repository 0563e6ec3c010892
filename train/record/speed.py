"""Speed metrics of a run: FLOP/s, model FLOP utilisation, and peak device memory."""

from collections.abc import Sequence
from typing import Any

import jax

from train.record.summary import format_quantity

# Peak dense bf16 FLOP/s of one device by prefix of its `device_kind`; the longest matching prefix counts.
# TPU v5e: docs.cloud.google.com/tpu/docs/v5e. NVIDIA: data sheets as cited by public tables (numbers with sparsity
# halved), not checked against the sheets themselves. None: number not found, so MFU is not reported.
PEAK: dict[str, float | None] = {
    **{"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": None},
    **{"NVIDIA H200": 989e12, "NVIDIA H200 NVL": None, "NVIDIA L4": 121e12},
    **{"TPU v5 lite": 197e12, "TPU v5e": 197e12},
}


def peak_flops(kind: str) -> float | None:
    """The peak FLOP/s of a device kind; None if unknown, and for a part of a device (MIG)."""
    names = [name for name in PEAK if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK[max(names, key=len)] if names and "MIG" not in kind else None


def throughput_metrics(flop: float, seconds: float, devices: Sequence[Any]) -> dict[str, float]:
    """The metrics `flops_per_second` and, if the peak is known, `mfu`, for `flop` FLOPs on all devices."""
    found = {"flops_per_second": flop / seconds}
    if most := peak_flops(devices[0].device_kind):
        found["mfu"] = found["flops_per_second"] / (most * len(devices))
    return found


def memory_metrics(devices: Sequence[Any]) -> dict[str, float]:
    """The metric `memory_peak` of this process's devices; {} if they do not report it."""
    reports = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    peaks = [report["peak_bytes_in_use"] for report in reports if "peak_bytes_in_use" in report]
    return {"memory_peak": float(max(peaks))} if peaks else {}


def format_speed(metrics: dict[str, float]) -> str:
    """The metrics of this file, and `data_wait` if it is at least 5 %, as short text, each after two spaces."""
    parts = []
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    elif metrics.get("flops_per_second"):
        parts.append(format_quantity(metrics["flops_per_second"], "FLOP/s"))
    if "memory_peak" in metrics:
        parts.append(f"memory {format_quantity(metrics['memory_peak'], 'B')}")
    if metrics.get("data_wait", 0.0) >= 0.05:
        parts.append(f"waits for data {metrics['data_wait']:.0%}")
    return "".join(f"  {part}" for part in parts)
