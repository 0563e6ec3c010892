"""One function per verb, from its flags and assigned knobs to calls of `configs` and `train`."""

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial

from absl.flags import FlagValues

from cli import peers, process
from cli.checkpoints import (
    check_ignore_key,
    pretrained_config,
    pretrained_folder,
    select_checkpoints,
)
from cli.flags import Assignments
from cli.process import DONE, FAILED, SAVED
from cli.run_config import run_config
from cli.runtime import make_runtime, start_jax
from configs.knobs import RunConfig
from configs.unread import unread, unread_by
from errors import UsageError, quote
from train.runtime import Runtime
from train.workdir import normalize_workdir


def _train(args: FlagValues, assignments: Assignments) -> int:
    workdir = normalize_workdir(args.workdir)
    check_ignore_key(args)
    from configs import reader

    where = args.coordinator, args.num_processes, args.process_id
    # from here on a signal is handled at the end of an update
    with process.listen_for_signals() as signals, peers.connect(*where, workdir, signals) as others:
        runtime = make_runtime(signals=signals, agree=others.agree, any_process=others.any_process)
        start_jax(args)
        from train import run

        saved = run.saved_config(workdir)  # None before the first checkpoint: then the config may change freely
        if saved is not None and not args.config:
            reader.run_code(saved.code, runtime.say)
        if note := reader.describe_default(args.config) if args.config else None:
            runtime.say(note)
        if args.dataset:
            assignments = [("data.name", args.dataset), *assignments]
        config = run_config(args, assignments, runtime, saved)
        commit = {"the commit of the code": runtime.revision}
        others.agree({**commit, "--cpu_devices": args.cpu_devices, **config.flatten()})
        others.join_jax()
        given = {key for key, _ in assignments} | ({"model.family", "loss"} if args.pretrained else set())
        find_unread = partial(unread, given=given, only_given=not args.config)
        result = run.train(config, workdir, runtime, find_unread, saved=saved)
        if result.signal:
            runtime.say(f"{result.signal}: saved; run the same command again to continue")
    return SAVED if result.signal else DONE


def _eval(args: FlagValues, assignments: Assignments) -> int:
    folder = pretrained_folder(args)
    if args.dataset:
        assignments = [("data.name", args.dataset), *assignments]
    given = {key for key, _ in assignments}

    def evaluate(config: RunConfig, runtime: Runtime, name: str, step: int | None = None) -> None:
        from train.verbs import evaluate as evaluate_verb
        from train.verbs import load_model

        if args.dataset and "eval.split" not in given:
            config = config.replace({"eval.split": evaluate_verb.default_split(config, runtime)})
        kind, held_out = evaluate_verb.eval_source(config, runtime, args.task)
        find_unread = evaluate_verb.find_unread(config, kind, given)
        if step is None:
            opened = load_model.open_pretrained(
                config, name, runtime, held_out, None, args.ignore_key, given, find_unread
            )
            evaluate_verb.report(opened, held_out, kind)
        else:
            opened = load_model.open_checkpoint(config, name, step, runtime, held_out, unread=find_unread)
            evaluate_verb.report(opened, held_out, kind, name, step)

    if folder is not None:
        if not args.dataset:
            raise UsageError("--dataset is missing: what to evaluate on, as --dataset=lambada_openai_test")
        start_jax(args)
        config = pretrained_config(assignments, {"train.batch": 8, "eval.context": 2048})
        evaluate(config, make_runtime(), folder)
        return DONE
    selected = select_checkpoints(args, assignments)
    if selected.which != "all":
        selected.use_first(evaluate)
        return DONE
    from train.checkpoint import CorruptCheckpoint
    from train.evaluate.evaluate import NotFinite

    failed = 0
    for step in selected.steps:
        try:
            evaluate(selected.config(step), selected.runtime, selected.workdir, step)
        except (CorruptCheckpoint, NotFinite) as error:
            failed += 1
            selected.runtime.say(f"{error}; continuing with the others")
    return FAILED if failed else DONE


def _sample(args: FlagValues, assignments: Assignments) -> int:
    given = {key for key, _ in assignments}
    if "mesh" in given:
        raise UsageError("--config.mesh has no effect here: sample runs on one device")
    folder = pretrained_folder(args)
    settings = {name: args[name].value for name in ("prompt", "max_new_tokens", "stop", "seed", "timing")}
    sampling = {name: args[name].value for name in ("temperature", "top_k", "top_p", "min_p")}
    sampling["repetition"] = args.repetition_penalty

    def print_samples(config: RunConfig, runtime: Runtime, name: str, step: int | None = None) -> None:
        from train.verbs import load_model
        from train.verbs import sample as sample_verb

        find_unread = unread_by("sample", given)
        opened = load_model.open_language_model(config, runtime, name, step, args.ignore_key, find_unread)
        sample_verb.print_samples(opened, **settings, **sampling)

    if folder is not None:
        start_jax(args)
        print_samples(pretrained_config(assignments), make_runtime(), folder)
        return DONE
    selected = select_checkpoints(args, assignments)
    selected.require_one("sample")
    selected.use_first(print_samples)
    return DONE


def _convert(args: FlagValues, assignments: Assignments) -> int:
    workdir, given = normalize_workdir(args.workdir), {key for key, _ in assignments}
    if bool(args.pretrained) == bool(args.export):
        raise UsageError("convert takes --pretrained=DIR --workdir=W, or --workdir=W --export=DIR")
    if args.pretrained:
        start_jax(args)
        config = pretrained_config(assignments)
        from train.verbs import convert

        folder, find_unread = os.path.expanduser(args.pretrained), unread_by("convert --pretrained", given)
        convert.import_pretrained(config, folder, workdir, make_runtime(), args.ignore_key, given, find_unread)
        return DONE
    selected = select_checkpoints(args, assignments)
    selected.require_one("convert")

    def export(config: RunConfig, runtime: Runtime, name: str, step: int) -> None:
        from train.verbs import convert

        find_unread = unread_by("convert --export", given)
        convert.export_pretrained(config, name, step, os.path.expanduser(args.export), runtime, find_unread)

    selected.use_first(export)
    return DONE


def _tokenizer(args: FlagValues, assignments: Assignments) -> int:
    if not args.data or not args.output:
        raise UsageError("tokenizer takes --data=DATA --output=FILE, as --data=pydoc_text --output=bpe.json")
    if assignments:
        raise UsageError("tokenizer takes no --config.KEY=VALUE; use --data, --split, --field and --vocab_size")
    from train.verbs import train_tokenizer

    train_tokenizer.train_tokenizer(
        args.data, args.split, args.field, args.vocab_size, os.path.expanduser(args.output), make_runtime()
    )
    return DONE


def _doctor(args: FlagValues, assignments: Assignments) -> int:
    if assignments:
        raise UsageError("doctor takes no --config.KEY=VALUE; it checks the machine, or --data=NAME")
    if args.field and not args.data:
        raise UsageError(f"--field={args.field} needs --data: it names that data set's text field")
    start_jax(args)
    from train.verbs import doctor

    well = (
        doctor.check_data(make_runtime(), args.data, args.field) if args.data else doctor.check_machine(make_runtime())
    )
    return DONE if well else FAILED


def _list(args: FlagValues, assignments: Assignments) -> int:
    if assignments:
        raise UsageError("list takes no --config.KEY=VALUE")
    from configs import listing

    match args.words:
        case []:
            from train.verbs.listing import list_families

            lines = list_families()
        case ["knobs"]:
            lines = listing.of_knobs(None, _choices())
        case ["knobs", section]:
            lines = listing.of_knobs(section, _choices())
        case [path] if path.endswith(".py"):
            lines = listing.of_file(path)
        case words:
            raise UsageError(f"list takes nothing, a config file, or knobs and a section, not {quote(' '.join(words))}")
    process.print_text("\n".join(lines))
    return DONE


def _choices() -> Mapping[str, Collection[str]]:
    from train.setup.checks import CHOICES

    return CHOICES


VERBS: dict[str, Callable[[FlagValues, Assignments], int]] = {
    "train": _train,
    "eval": _eval,
    "sample": _sample,
    "convert": _convert,
    "tokenizer": _tokenizer,
    "doctor": _doctor,
    "list": _list,
}
