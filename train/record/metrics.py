"""What a run writes down: `metrics.jsonl`, one object a line, and TensorBoard event files beside it.

`{"v":1,"kind":"train"|"eval"|"event","step":n,"time":unix_s,"wall":s_since_first_start,"split":name|null,
"metrics":{…},"stderr":{…}}`; step counts finished updates, an event bears a `note`; non-finite numbers are strings. A
resume appends an event, and readers drop earlier lines of a greater step.
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
    "accuracy": "fraction of tokens or examples predicted correctly; with several labels, of rows with all correct",
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
MAX_ENTRIES = 256  # entries of a metric that are written one by one


def flatten_metrics(metrics: dict[str, Any], extremes: bool = True) -> dict[str, float]:
    """Numbers by name, of scalars and arrays: of these `name_max`, `name_min` and, where they are few, `name/0/3` …"""
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
    """Whether a metric is one entry of many."""
    return "/" in name


def _to_json(values: dict[str, float]) -> dict[str, Any]:
    return {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in values.items()}


class Recorder:
    """Appends to `metrics.jsonl` and to the event files of a workdir. To be made by process 0 alone."""

    def __init__(
        self, workdir: str, runtime: Runtime, start: int = 0, project: str | None = None, config: Any = None
    ) -> None:
        self._wandb = None
        if project is not None:
            settings = dict(project=project, id=_wandb_id(workdir), config=config, resume="allow", dir=workdir)
            self._wandb = import_wandb().init(name=epath.Path(workdir).name, **settings)

        path, self._clock = epath.Path(workdir) / "metrics.jsonl", runtime.clock
        earlier = read(workdir, runtime.say) if path.exists() else []
        self.continues = bool(earlier)  # a run wrote here before, even if it left no checkpoint
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
        """Append one line, and one event a metric.

        Raises OSError that names the file, as where the disk is full, and RuntimeError where the workdir is no more.
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
        """Close both."""
        self._file.close()
        self._events.close()
        if self._wandb:
            self._wandb.finish()


class NullRecorder:
    """The recorder of a process other than 0."""

    continues = False

    def write(self, kind: str, step: int, metrics: dict[str, float], **more: Any) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Close nothing."""


def import_wandb() -> Any:
    """The package wandb. Raises UsageError where it is missing."""
    try:
        import wandb
    except ImportError:
        raise UsageError("config key 'log.wandb' needs the package wandb: pip install wandb") from None
    return wandb


def _wandb_id(workdir: str) -> str:
    """The run's name there, drawn once and kept in the workdir: one run there as long as it is one here."""
    path = epath.Path(workdir) / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _drop_partial_line(path: epath.Path) -> None:
    """End the file after its last whole line: a killed process may have left half of one."""
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text) and "://" not in str(path):
        os.truncate(path, whole)


def read(workdir: str, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The lines of a run as it stands: those that a resume made void are dropped, a torn last line too.

    `say` reports a line that cannot be read and is passed over. Raises UsageError for a folder or a pipe in its place.
    """
    lines: list[dict[str, Any]] = []
    path = epath.Path(workdir) / "metrics.jsonl"
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a run writes its metrics to a file of that name: move the folder away")
    if path.exists() and "://" not in workdir:
        require_regular_file(path)
    for number, row in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        line = _parse_line(row)
        if line is None:
            if say:
                say(f"{path} line {number} cannot be read; passing over it")
            continue
        if line["kind"] == "event" and line.get("note", "").startswith("resumed"):
            lines = [old for old in lines if old["step"] <= line["step"]]
        lines.append(line)
    return lines


def _current(name: str) -> str:
    """The current name of a metric."""
    return OLD.sub(lambda old: (old[1] or "") + renamed.METRICS[old[2]], name)


def _parse_line(row: bytes) -> dict[str, Any] | None:
    """A line, None where it is none of ours: no JSON, or a field that is missing or of another type."""
    try:
        line = json.loads(row)
        kinds = [(line["kind"], str), (line["step"], int), (line["time"], int | float), (line["metrics"], dict)]
        kinds += [(line.get("note", ""), str), (line.get("split"), str | None), (line.get("stderr", {}), dict)]
        whole = all(isinstance(value, kind) and not isinstance(value, bool) for value, kind in kinds)
        if not whole or not math.isfinite(line["time"]) or abs(line["step"]) >= 2**53:
            return None
        for part in ("metrics", "stderr"):
            line[part] = {_current(name): value for name, value in line.get(part, {}).items()}
        return line
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
