"""The lines that a run prints before its first update: model, data, batch, mesh, cost, files."""

import jax

from data import sampler
from data.images.detection import note
from data.source import EpochSource, Source
from data.sources import splits
from train.record import summary
from train.setup.run_data import RunData
from train.setup.setup import Setup


def introduce(setup: Setup, data: RunData, batches: sampler.BatchSampler, start: int, cost: int, workdir: str) -> None:
    """Print a run's summary; `cost` is the FLOPs of an update."""
    config, runtime, model = setup.config, setup.runtime, setup.model
    if config.log.table:
        runtime.say(*summary.parameter_table(model, setup.place, setup.dtype), "")
    train, held_out = config.train, data.held_out
    sources = ", ".join(map(_describe_size, data.corpora, batches.sources))
    source_notes = [text for source in (*data.corpora, held_out) for text in source.notes]
    uncounted = getattr(model.config, "attention", "") in ("cudnn", "splash")
    runtime.say(
        f"model   {_describe_model(setup)}",
        f"data    {sources}, split {config.data.split}; held out: {config.eval.split} ({len(held_out):,})",
        f"batch   {batches.phase(start).batch_size:,} rows per update, {train.accumulate} microbatch(es); "
        f"{train.steps:,} updates in all",
        *overlap_notes(data.corpora[0], held_out),
        *shortened_note(config.data.max_length, setup.context),
        *dict.fromkeys(f"        {text}" for text in source_notes),
        f"mesh    {summary.describe_mesh(setup.place)}",
        f"cost    {summary.format_quantity(cost, 'FLOP')} an update"
        f"{', but for the inside of attention' if uncounted else ''}",
        f"files   {workdir}/{{config.json, metrics.jsonl, events/, plots/, checkpoints/}}",
        "",
    )


def _describe_model(setup: Setup) -> str:
    """Family, size, parameters and precision of a run's model."""
    config, model = setup.config, setup.model
    size = f", size {config.model.size}" if config.model.size else ""
    specs, mask = (jax.tree.leaves(tree) for tree in (model.specs["params"], setup.options.freeze_mask))
    frozen = sum(spec.size for spec, is_frozen in zip(specs, mask, strict=True) if is_frozen)
    still = f", {frozen:,} of them frozen" if frozen else ""
    coupled = "; batch_coupled: accumulation changes its statistics" if "batch_coupled" in model.traits else ""
    return f"{model.family}{size}: {summary.parameter_counts(model)}{still}, {config.train.precision}{coupled}"


def _describe_size(source: Source, corpus: EpochSource) -> str:
    """A source's name and size, with its number of tokens or dropped pairs."""
    return f"{source.identity['name']} ({source.describe(corpus)})"


def overlap_notes(trained: Source, held_out: Source) -> tuple[str, ...]:
    """A note if held-out rows are trained on too, as with `train[:90%]` and `train[80%:]`.

    Splits of images with boxes may also list the same files.
    """
    ours, theirs = trained.identity["split"], held_out.identity["split"]
    if shared := splits.overlap(ours, theirs):
        return (f"        held-out rows of {shared!r} are trained on too: {ours} and {theirs} overlap",)
    both = set(trained.paths).intersection(held_out.paths)
    return note("        held out", "images that are trained on too", sorted(both))


def shortened_note(length: int | None, context: int | None) -> list[str]:
    """A note if the model's context is shorter than the config's row length."""
    if length is None or context is None or length <= context:
        return []
    return [f"        rows have {context:,} tokens, the model's context, and not data.max_length = {length:,}"]
