"""The metrics of a run: `metrics.jsonl`, one JSON object per line, and TensorBoard event files.

`{"v":1,"kind":"train"|"eval"|"event","step":n,"time":unix_s,"wall":s_since_first_start,"split":name|null,
"metrics":{…},"stderr":{…}}`. `step` counts finished updates, an event has a `note`, and non-finite numbers are strings.
A resume appends an event; readers then drop earlier lines with a larger step.
"""

import json
import math
import os
import re
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

import renamed
from documents import require_regular_file
from errors import UsageError
from train.record.events import AppendFile, EventWriter
from train.runtime import Runtime

UNITS = {
    "loss": "nats per token or example; for loss quadratic the quadratic cost",
    "accuracy": "fraction of tokens or examples predicted correctly; with several labels, of rows with all correct; "
    "of two views, found as nearest",
    "f1": "2 TP / (2 TP + FP + FN) over all rows and classes, at a probability of 0.5; f1/CLASS for one class",
    "f1_macro": "mean of the classes' F1",
    "average_precision": "average_precision/CLASS: mean over the class's positive rows of the precision at each",
    "top5_accuracy": "fraction of examples whose class is among the five largest logits",
    "ece": "expected calibration error: mean difference of confidence and accuracy over 15 bins of confidence",
    "perplexity": "exp(loss)",
    "box_loss": "nats per image: position and size of a detector's boxes",
    "objectness_loss": "nats per image: whether there is a box",
    "class_loss": "nats per image: the class of a box",
    "iou": "intersection over union of a box and the prediction assigned to it",
    "bits_per_byte": "bits per byte of text",
    "map": "mean average precision: of boxes over classes and IoU thresholds 0.5, 0.55 … 0.95; of labels over classes",
    "map_50": "mean average precision of boxes at an IoU threshold of 0.5; map_50/CLASS of one class",
    "map_75": "mean average precision of boxes at an IoU threshold of 0.75",
    "average_recall": "recall of boxes by the 100 highest scores of an image, scores above 0.005; averaged as map",
    "grad_norm": "global norm of the gradient, before clipping",
    "lr": "learning rate",
    "router_aux_loss": "load-balancing loss of the experts, as added to the loss",
    "mtp_loss": "multi-token prediction: nats per token, of tokens after the next, in training",
    "expert_load": "tokens of an expert over the mean of all experts: 1 is balanced; padding tokens count too",
    "mtp_expert_load": "expert_load of the multi-token prediction modules",
    "expert_dropped": "fraction of routed choices that no expert computed",
    "router_entropy": "nats: entropy of the router's probabilities, mean over tokens and layers",
    "skipped": "1 if the update was not finite and was skipped",
    "examples_per_second": "training examples over wall time since the last line",
    "tokens_per_second": "training tokens over wall time since the last line",
    "flops_per_second": "FLOP of the updates since the last line over wall time, of all devices; counted as in `cost`",
    "mfu": "model FLOP utilisation: flops_per_second over the devices' dense bf16 peak; recomputation by remat counts",
    "memory_peak": "largest number of bytes in use on any device since the process started",
    "data_wait": "fraction of wall time since the last line that the host waited for the next batch",
}


OLD = re.compile(rf"^(ema_)?({'|'.join(renamed.METRICS)})(?=$|/|_max$|_min$)")  # an old name of a metric
MAX_ENTRIES = 256  # an array metric with more entries is recorded by its extremes only


def flatten_metrics(metrics: dict[str, Any], extremes: bool = True) -> dict[str, float]:
    """Scalars and arrays by name -> numbers. An array gives `name_max`, `name_min` and, if small, `name/0/3` …"""
    found: dict[str, float] = {}
    for name, value in metrics.items():
        array = np.asarray(value)
        if not array.ndim:
            found[name] = float(array)
            continue
        if extremes:
            found |= {f"{name}_max": float(array.max()), f"{name}_min": float(array.min())}
        if array.size <= MAX_ENTRIES:
            found |= {"/".join((name, *map(str, at))): float(array[at]) for at in np.ndindex(array.shape)}
    return found


def is_entry(name: str) -> bool:
    """Whether a metric is an entry of an array metric."""
    return "/" in name


def _to_json(values: dict[str, float]) -> dict[str, Any]:
    return {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in values.items()}


class Recorder:
    """Appends to `metrics.jsonl` and to the event files of a workdir. Only process 0 creates one."""

    def __init__(
        self, workdir: str, runtime: Runtime, start: int = 0, project: str | None = None, config: Any = None
    ) -> None:
        self._wandb = None
        if project is not None:
            settings = dict(project=project, id=_wandb_id(workdir), config=config, resume="allow", dir=workdir)
            self._wandb = import_wandb().init(name=epath.Path(workdir).name, **settings)

        path, self._clock = epath.Path(workdir) / "metrics.jsonl", runtime.clock
        earlier = read(workdir, runtime.say) if path.exists() else []
        self.continues = bool(earlier)  # a run wrote here before, even if it saved no checkpoint
        now = runtime.clock()
        self._start = earlier[0]["time"] if earlier else now
        if path.exists():
            _drop_partial_line(path)
        self._folder, self._local = path.parent, "://" not in workdir
        self._file = AppendFile(path)
        name = f"events.out.tfevents.{int(now):010d}.{secrets.token_hex(4)}"
        self._events = EventWriter(path.parent / "events" / name, now, purge=start + 1)
        if config is not None:
            self._events.text("config", f"```json\n{json.dumps(config, indent=2)}\n```", start, now)

    def write(
        self,
        kind: str,
        step: int,
        metrics: dict[str, float],
        *,
        split: str | None = None,
        stderr: dict[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """Append one line, and one event per metric.

        Raises OSError with the file's name, for example if the disk is full, and RuntimeError if the workdir is gone.
        """
        if self._local and not self._folder.exists():
            raise RuntimeError(f"{self._folder} was deleted while the run wrote to it")
        now = self._clock()
        line: dict[str, Any] = {"v": 1, "kind": kind, "step": step, "time": now, "wall": now - self._start}
        line.update(split=split, metrics=_to_json(metrics), stderr=_to_json(stderr or {}))
        if note is not None:
            line["note"] = note
        self._file.write((json.dumps(line) + "\n").encode())
        for name, value in metrics.items():
            if math.isfinite(value):
                self._events.scalar(f"{split or kind}/{name}", value, step, now)
        if self._wandb and metrics:
            self._wandb.log({f"{split or kind}/{name}": value for name, value in metrics.items()}, step=step)

    def close(self) -> None:
        """Close all outputs."""
        self._file.close()
        self._events.close()
        if self._wandb:
            self._wandb.finish()


class NullRecorder:
    """The recorder of processes other than 0, which records nothing."""

    continues = False

    def write(self, kind: str, step: int, metrics: dict[str, float], **more: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def import_wandb() -> Any:
    """The package wandb. Raises UsageError if it is missing."""
    try:
        import wandb
    except ImportError:
        raise UsageError("config key 'log.wandb' needs the package wandb: pip install wandb") from None
    return wandb


def _wandb_id(workdir: str) -> str:
    """The run's id in wandb, drawn once and stored in the workdir, so that a resume continues the same wandb run."""
    path = epath.Path(workdir) / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _drop_partial_line(path: epath.Path) -> None:
    """Truncate the file after its last complete line: a killed process may have left a partial one."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text) and "://" not in str(path):
        os.truncate(path, whole)


def read(workdir: str, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The valid lines of a run, without lines that a resume invalidated and without a partial last line.

    `say` reports unreadable lines, which are skipped. Raises UsageError if the path is a folder or a pipe.
    """
    lines: list[dict[str, Any]] = []
    path = epath.Path(workdir) / "metrics.jsonl"
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a run writes its metrics to that path: move the folder away")
    if path.exists() and "://" not in workdir:
        require_regular_file(path)
    for number, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        line = _parse_line(row)
        if line is None:
            if say:
                say(f"{path} line {number} cannot be read; skipping it")
            continue
        if line["kind"] == "event" and line.get("note", "").startswith("resumed"):
            lines = [old for old in lines if old["step"] <= line["step"]]
        lines.append(line)
    return lines


def current_name(name: str) -> str:
    """The current name of a metric."""
    return OLD.sub(lambda old: (old[1] or "") + renamed.METRICS[old[2]], name)


def _parse_line(row: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is not JSON, or a field is missing or has the wrong type."""
    try:
        line = json.loads(row)
        kinds = [(line["kind"], str), (line["step"], int), (line["time"], int | float), (line["metrics"], dict)]
        kinds += [(line.get("note", ""), str), (line.get("split"), str | None), (line.get("stderr", {}), dict)]
        whole = all(isinstance(value, kind) and not isinstance(value, bool) for value, kind in kinds)
        if not whole or not math.isfinite(line["time"]) or abs(line["step"]) >= 2**53:
            return None
        for part in ("metrics", "stderr"):
            line[part] = {current_name(name): value for name, value in line.get(part, {}).items()}
        return line
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
