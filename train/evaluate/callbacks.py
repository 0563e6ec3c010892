"""Callbacks: functions that the knob `eval.callbacks` names, called after each evaluation.

A callback takes an `Evaluation` and returns metrics of its own by name, or None. It is an entry of CALLBACKS, or a
user's `package.file:function`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

import imports
from configs.knobs import RunConfig
from data.eval_set import EvalSet
from data.text.tokenizers import Tokenizer
from errors import UsageError, prefix_errors, quote
from models import Model
from models.core.types import Variables
from train.checkpoint.folder import write_atomic
from train.evaluate.evaluate import Scores
from train.generate import sample
from train.generate.stream import stream_texts
from train.record import metrics
from train.sharding import mesh
from train.update.step import stream_key


@dataclass(frozen=True)
class Evaluation:
    """What a callback is called with."""

    model: Model
    variables: Variables  # those evaluated, on the run's mesh: the running mean if the run keeps one
    step: int  # updates before it; 0 for a folder of --pretrained
    scores: Scores  # scores.rows has the loss, and in most tasks prediction and label, of each row
    eval_set: EvalSet  # the rows, in the order of scores.rows
    config: RunConfig
    say: Callable[[str], None]  # prints a line, in process 0
    workdir: str | None = None  # None for a folder of --pretrained
    tokenizer: Tokenizer | None = None
    class_names: tuple[str, ...] | None = None

    @contextmanager
    def on_one_device(self) -> Iterator[Variables]:
        """A copy of the variables on one device of each process, and a block that computes there.

        All processes must enter it. The device must have room for the copy.
        """
        shard = jax.tree.leaves(self.variables)[0].addressable_shards[0]
        place = mesh.make_placement(mesh.make_mesh("dp:1", [shard.device]), self.model.specs)
        whole = jax.tree.map(_addressable, self.variables)
        copy = jax.device_put(whole, place.shardings({"stats": {}, **self.model.specs}))
        with jax.set_mesh(place.mesh):
            yield copy


def _addressable(leaf: jax.Array) -> jax.Array | np.ndarray:
    """A leaf, or if other processes hold parts of it the whole as an array of numpy."""
    return leaf if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)


Callback = Callable[[Evaluation], object]  # returns metrics by name, a mapping to numbers, or None


@dataclass(frozen=True)
class Samples:
    """Prints texts that a language model writes after the beginnings of held-out texts.

    They are kept in the workdir's samples.jsonl, a line each: `{"step":n,"prompt":…,"text":…}`. Their draws follow from
    the config's seed and the step.
    """

    count: int = 3  # texts
    prompt_tokens: int = 16
    new_tokens: int = 64
    line: int = 200  # characters of a text that are printed
    traits: frozenset[str] = frozenset({"cached", "language_model"})  # that the model needs

    def __call__(self, evaluation: Evaluation) -> None:
        """Write, print and keep the texts."""
        tokenizer, n = evaluation.tokenizer, evaluation.step
        assert tokenizer is not None
        prompts = self._prompts(evaluation)
        room = evaluation.model.config.context - max(map(len, prompts)) + 1
        with evaluation.on_one_device() as variables:
            key = jax.random.fold_in(stream_key(evaluation.config.seed, "samples"), n)
            chunks = sample.generate(
                evaluation.model,
                variables,
                prompts,
                key,
                count=min(self.new_tokens, room),
                sampling=sample.Sampling(stop=tokenizer.stop_ids),
            )
            texts = map("".join, zip(*stream_texts(tokenizer, prompts, chunks), strict=True))
        lines = []
        for prompt, text in zip(map(tokenizer.decode, prompts), texts, strict=True):
            lines.append({"step": n, "prompt": prompt, "text": text})
            shown = text if len(text) <= self.line else f"{text[: self.line]}…"
            evaluation.say(f"step {n:,}  sample: {_quoted(prompt)} {_quoted(shown)}")
        if evaluation.workdir is not None and not jax.process_index():
            _replace_lines(epath.Path(evaluation.workdir) / "samples.jsonl", n, lines, evaluation.say)

    def _prompts(self, evaluation: Evaluation) -> list[np.ndarray]:
        """The first tokens of documents, evenly spaced in the evaluation set: [T] each."""
        starts = np.unique(evaluation.eval_set.clusters, return_index=True)[1]
        rows = starts[np.linspace(0, len(starts) - 1, min(self.count, len(starts))).astype(int)]
        batch = next(evaluation.eval_set.batches(len(evaluation.eval_set), rows))
        longest = max(1, min(self.prompt_tokens, evaluation.model.config.context // 2))
        lengths = np.clip((batch["weight"] > 0).sum(1), 1, longest)
        return [tokens[:length] for tokens, length in zip(batch["tokens"], lengths, strict=True)]


def _quoted(text: str) -> str:
    """A text on one line."""
    return json.dumps(text, ensure_ascii=False)


def _replace_lines(path: epath.Path, n: int, lines: list[dict[str, object]], say: Callable[[str], None]) -> None:
    """Append a step's lines to a .jsonl file, without those that an earlier evaluation of the step wrote there."""
    try:
        old = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in old if json.loads(line)["step"] != n]
        write_atomic(path, "\n".join([*kept, *map(json.dumps, lines), ""]))
    except (OSError, ValueError, KeyError, TypeError) as error:  # eval also reads folders that it may not write to
        say(f"samples are not in {path}: {error}")


CALLBACKS: dict[str, Callback] = {"samples": Samples()}


def find_callbacks(names: tuple[str, ...] | None, model: Model) -> dict[str, Callback]:
    """The callbacks of `eval.callbacks` by name, in order. Importing a user's file runs it.

    Raises UsageError for a function that does not exist, and for a callback that needs another kind of model.
    """
    found: dict[str, Callback] = {}
    for name in names or ():
        found[name] = CALLBACKS[name] if name in CALLBACKS else imports.load_name(name, _key(name))
        required: frozenset[str] = getattr(found[name], "traits", frozenset())
        if missing := required - model.traits:
            lacks = " and ".join(sorted(missing))
            raise UsageError(f"{_key(name)} needs a model with the traits {lacks}; family {model.family!r} lacks them")
    return found


def call(callbacks: Mapping[str, Callback], evaluation: Evaluation) -> dict[str, float]:
    """The metrics that callbacks return, by name. None is called if nothing was evaluated.

    Raises UsageError with the callback's name for whatever it raises, and for a result other than new metrics or None.
    """
    found: dict[str, float] = {}
    for name, callback in callbacks.items() if evaluation.scores.examples else ():
        with prefix_errors(_key(name)), imports.code_errors(_key(name), name.rpartition(":")[0] or name):
            own = _checked(_key(name), callback(replace(evaluation, scores=_copy(evaluation.scores))))
        for metric, value in own.items():
            if evaluation.scores.prefix + metric in evaluation.scores.metrics or metric in found:
                raise UsageError(f"{_key(name)} returns {metric!r}, a metric that the evaluation has already")
            found[metric] = value
    return found


def _copy(scores: Scores) -> Scores:
    """The scores with copies of the metrics and read-only rows: a callback cannot change what is recorded."""
    rows = jax.tree.map(lambda x: np.broadcast_to(x, x.shape), scores.rows)
    return scores._replace(metrics={**scores.metrics}, stderr={**scores.stderr}, rows=rows)


def _key(name: str) -> str:
    return f"config key 'eval.callbacks' = {name!r}"


def _checked(key: str, result: object) -> dict[str, float]:
    """A callback's result as numbers by name. Raises UsageError."""
    if result is None:
        return {}
    if not isinstance(result, Mapping):
        raise UsageError(f"{key} returns {quote(result)}, not a mapping of metrics to numbers, or None")
    found = {}
    for metric, value in result.items():
        is_word = isinstance(metric, str) and re.fullmatch(r"[^\s/]+", metric)
        if not is_word or metrics.current_name(metric) != metric:
            raise UsageError(
                f"{key} returns a metric {quote(metric)}; its name must be a word without '/', and not an old metric's"
            )
        array = np.asarray(value)
        if array.shape or not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise UsageError(f"{key} returns {metric} = {quote(value)}, not a real number")
        found[metric] = float(array)
    return found
