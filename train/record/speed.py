"""How fast a run is: FLOP a second, their share of what its devices can do, and the memory that these needed."""

from collections.abc import Sequence
from typing import Any

import jax

from train.record.summary import format_quantity

# FLOP a second of one device, dense products of bf16, by how its `device_kind` begins; the longest that fits counts.
# TPU v5e's is of docs.cloud.google.com/tpu/docs/v5e; NVIDIA's are as public tables cite its data sheets (numbers with
# sparsity halved), not compared with the sheets themselves. None is a device whose number was not found: it has no MFU.
PEAK: dict[str, float | None] = {
    **{"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100 NVL": None},
    **{"NVIDIA H200": 989e12, "NVIDIA H200 NVL": None, "NVIDIA L4": 121e12},
    **{"TPU v5 lite": 197e12, "TPU v5e": 197e12},
}


def peak_flops(kind: str) -> float | None:
    """FLOP a second of a kind of device; None where the table lacks it, and for a part of a device (MIG)."""
    names = [name for name in PEAK if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAK[max(names, key=len)] if names and "MIG" not in kind else None


def throughput_metrics(flop: float, seconds: float, devices: Sequence[Any]) -> dict[str, float]:
    """The metrics `flops_per_second` and, where the devices are known, `mfu`, of so many FLOP on all devices."""
    found = {"flops_per_second": flop / seconds}
    if most := peak_flops(devices[0].device_kind):
        found["mfu"] = found["flops_per_second"] / (most * len(devices))
    return found


def memory_metrics(devices: Sequence[Any]) -> dict[str, float]:
    """The metric `memory_peak` of this process's devices; nothing where these do not report it."""
    reports = [device.memory_stats() or {} for device in devices if device.process_index == jax.process_index()]
    peaks = [report["peak_bytes_in_use"] for report in reports if "peak_bytes_in_use" in report]
    return {"memory_peak": float(max(peaks))} if peaks else {}


def format_speed(metrics: dict[str, float]) -> str:
    """The metrics of this file and `data_wait`, short, each after two spaces; the wait where it is one in twenty."""
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
