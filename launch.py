"""Train, evaluate and sample the networks of Canon.

    python launch.py train  --config=configs/gpt.py:quickstart --workdir=runs/a   # goes on if runs/a has a checkpoint
    python launch.py eval   --workdir=runs/a            # or runs/a@500, @best, @latest, @all
    python launch.py sample --workdir=runs/a --prompt="The import statement"    # or --pretrained=DIR, of the hub
    python launch.py convert --pretrained=DIR --workdir=runs/b     # and back: --workdir=runs/b --export=DIR
    python launch.py tokenizer --data=TEXT --output=bpe.json
    python launch.py doctor                             # devices, versions, data folder, disk; or --data=FOLDER
    python launch.py list                               # families; or: list configs/gpt.py, list knobs optim

`python launch.py VERB --help` explains a verb and its flags. A config is a file, a named config in it, and ablations:
`configs/gpt.py:shakespeare+no_warmup`. Any knob of configs/base.py can follow, in any order, for all but doctor:
`--config.optim.lr=3e-4 --config.mesh=fsdp:4,tp:2 --config.eval.every=None`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 interrupted and saved (run the same command again).
"""

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

import peers
import process
from errors import UsageError, quote, unknown
from process import DONE, FAILED, SAVED, USAGE
from usage import HELP, check_argument, define_flags, refuse_renamed

STORES = ("gs", "s3", "az")  # schemes of object storage that etils.epath supports
PRETRAINED_KNOBS = (  # knobs with an effect outside training, besides data, eval, model and rules
    "mesh",
    *(f"train.{name}" for name in ("precision", "attention", "dispatch", "batch", "scan")),
)


def main(argv: list[str]) -> int:
    """Run one verb -> exit code. An error prints one line; with --debug it is raised."""
    process.open_streams()
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(__doc__.strip(), file=process.Terminal(sys.stdout), flush=True)
        return DONE if argv else USAGE
    if argv[0] == "--version":
        print(_version(), file=process.Terminal(sys.stdout), flush=True)
        return DONE
    debug = "--debug" in argv
    try:
        process.require_cwd()
        return _dispatch(argv[0], [a for a in argv[1:] if a != "--debug"])
    except KeyboardInterrupt:
        process.print_error(process.INTERRUPTED)
        return FAILED
    except BaseException as error:  # a library may panic or exit, which is not an Exception
        if debug:
            raise
        text, code = process.error_line(error, [a.partition("=")[2] for a in argv])
        process.print_error(f"launch.py {argv[0]}: {text}")
        return code


def _dispatch(verb: str, argv: list[str]) -> int:
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    if "--help" in argv or "-h" in argv:
        text = f"{HELP[verb]}\n{define_flags(verb).get_help(include_special_flags=False).strip()}"
        print(text, file=process.Terminal(sys.stdout), flush=True)
        return DONE
    for text in argv:
        check_argument(text)
        refuse_renamed(verb, text)
    assignments = [a.removeprefix("--config.") for a in argv if a.startswith("--config.")]
    if verb != "train" and any(a.partition("=")[0] == "--config" for a in argv):
        raise UsageError(f"{verb} uses the checkpoint's config; change knobs by --config.KEY=VALUE")
    for text in assignments:
        if "=" not in text:
            raise UsageError(f"--config.{text} has no value; write --config.{text}=VALUE")
    args = define_flags(verb)
    try:
        rest = args(["launch.py", *(a for a in argv if not a.startswith("--config."))])[1:]
    except flags.Error as error:
        raise UsageError(str(error)) from None
    for name in args:
        if args[name].present and args[name].value == "":
            raise UsageError(f"--{name} is empty; give it a value, or leave it out")
    if rest and "words" in args:
        args.words = rest
    elif rest:
        raise UsageError(f"{quote(rest[0])} is not a flag; flags are written --name=value, as --workdir=runs/a")
    return VERBS[verb](args, [(k, v) for k, _, v in (a.partition("=") for a in assignments)])


def _version() -> str:
    """The versions of Canon and jax, and the commit, in one line."""
    import jax

    ours = re.search(r"^version: (\S+)", (Path(__file__).parent / "CITATION.cff").read_text(), re.MULTILINE)
    return f"Canon {ours[1] if ours else ''}, commit {process.revision() or 'unknown'}, jax {jax.__version__}"


def _make_runtime(**more: Any) -> Any:
    """The Runtime of this process; `more` are further fields, for a verb that handles signals."""
    from train.runtime import Runtime

    terminal = process.Terminal(sys.stdout, optional=bool(more))
    return Runtime(time.time, os.environ, terminal, revision=process.revision(), monotonic=time.monotonic, **more)


def _silence_libraries() -> None:
    """Silence the libraries' log messages; Canon prints what a user needs."""
    import logging
    import warnings

    from absl import logging as absl_logging

    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the errors that it raises, with tracebacks
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="orbax|tensorflow_datasets|google|PIL")
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")  # from Orbax, after a failed save
    shown = sys.unraisablehook

    def hook(unraisable: Any) -> None:  # TensorStore reports arrays that outlive a failed save or restore
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook


def _start_jax(args: flags.FlagValues) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    _silence_libraries()
    from train import compilation_cache

    if note := compilation_cache.enable(compilation_cache.cache_dir(args.cache, os.environ)):
        print(note, file=sys.stderr)
    if args.cpu_devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", args.cpu_devices)


def _require_workdir(args: flags.FlagValues) -> str:
    """The normalised path of --workdir. Raises UsageError."""
    if not args.workdir:
        raise UsageError("--workdir is missing: the folder of the run, as --workdir=runs/a")
    scheme, remote, _ = args.workdir.partition("://")
    if remote and scheme not in STORES:
        stores = ", ".join(f"{name}://" for name in STORES)
        raise UsageError(f"--workdir={args.workdir} must be a local path, or start with one of {stores}")
    if remote:
        return args.workdir
    workdir = os.path.expanduser(args.workdir)
    linked = ".." in Path(workdir).parts  # after a symbolic link, .. differs from the text's parent
    return os.path.realpath(workdir) if linked else os.path.normpath(workdir)


def _train(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    workdir = _require_workdir(args)
    if args.ignore_key and not args.pretrained:
        raise UsageError(f"--ignore_key={args.ignore_key[0]} goes with --pretrained: it names a key of its config.json")
    from configs import reader, unread

    where = args.coordinator, args.num_processes, args.process_id
    # from here on a signal is handled at the end of an update
    with process.listen_for_signals() as signals, peers.connect(*where, workdir, signals) as others:
        runtime = _make_runtime(signals=signals, agree=others.agree, any_process=others.any_process)
        _start_jax(args)
        from train import init_from, run

        saved = run.saved_config(workdir)  # None before the first checkpoint: then the config may change freely
        known = None if saved is None else reader.from_json(saved)
        if note := reader.describe_default(args.config) if args.config else None:
            runtime.say(note)
        if args.dataset:
            assignments = [("data.name", args.dataset), *assignments]
        if args.pretrained:
            cfg = _fine_tuning_config(args, assignments, runtime, saved)
        elif args.config or saved is not None:
            cfg = reader.override(
                reader.read(args.config) if args.config else reader.from_json(str(saved)), assignments
            )
        else:
            raise UsageError(
                "--config is missing: which model to train, as --config=configs/gpt.py:quickstart; "
                "or --pretrained, a Hugging Face folder to fine-tune"
            )
        init_from.set_vocab_size(cfg, known)
        if cfg.resume not in ("auto", "extend"):
            raise unknown("value of resume", cfg.resume, ("auto", "extend"))
        commit = {"the commit of the code": runtime.revision}
        others.agree({**commit, "--cpu_devices": args.cpu_devices, **reader.flatten(cfg)})
        others.join_jax()
        changes = reader.refuse_other_run(workdir, known, cfg) if known is not None else []
        given = {key for key, _ in assignments} | ({"model.family", "loss"} if args.pretrained else set())
        useless = partial(unread.unread, cfg, given, only_given=not args.config)
        ended = run.train(cfg, reader.to_json(cfg), workdir, runtime, changes, useless)
        if ended:
            runtime.say(f"{ended}: saved; run the same command again to go on")
    return SAVED if ended else DONE


def _fine_tuning_config(
    args: flags.FlagValues, assignments: list[tuple[str, str]], runtime: Any, saved: str | None
) -> Any:
    """The config of a run that fine-tunes a folder: with the training knobs of --config, else defaults.

    Knobs that an ablation such as `+window` changes override the folder, like assigned knobs.
    """
    from configs import base, reader
    from train.setup import tuning
    from train.verbs import evaluate as evaluate_verb

    known, given = reader.from_json(saved) if saved else None, {key for key, _ in assignments}
    given |= reader.ablation_keys(args.config) if args.config else set()
    cfg = reader.read(args.config) if args.config else known.copy_and_resolve_references() if known else base.defaults()
    plain = not args.config and known is None
    for key, value in tuning.DEFAULTS.items() if plain else ():
        base.assign(cfg, key, value)
    cfg = reader.override(cfg, assignments)
    if plain and "data.name" not in given:
        raise UsageError("--dataset is missing: what to train on, as --dataset=pydoc_text; or give --config")
    if plain and "eval.split" not in given:
        cfg.eval.split = evaluate_verb.default_split(cfg, runtime)
    tuning.configure(cfg, os.path.expanduser(args.pretrained), runtime, args.ignore_key, given, known)
    return cfg


def _pretrained_folder(args: flags.FlagValues) -> str | None:
    """The folder of --pretrained, or None if --workdir is given instead. Raises UsageError for both or neither."""
    if args.pretrained and args.workdir:
        raise UsageError("--pretrained and --workdir name two models; give one of them")
    if not args.pretrained and not args.workdir:
        raise UsageError(
            "--workdir is missing: the folder of the run, as --workdir=runs/a; or --pretrained, one of the hub"
        )
    return os.path.expanduser(args.pretrained) if args.pretrained else None


def _pretrained_config(args: flags.FlagValues, assignments: list[tuple[str, str]], **knobs: Any) -> tuple[Any, Any]:
    """Runtime and config for --pretrained: default knobs, with the changes in `knobs` and `assignments`."""
    from configs import base, reader

    _start_jax(args)
    from train.verbs import load_model

    cfg = base.defaults()
    for key, value in {"data__tokenizer": load_model.FOLDER_TOKENIZER, **knobs}.items():
        base.assign(cfg, key.replace("__", "."), value)
    cfg = reader.override(cfg, assignments)
    for key, _ in assignments:
        if key in ("model.family", "model.size"):
            raise UsageError(f"--config.{key} cannot be set: the folder's config.json determines it")
        _check_knob_has_effect(key)
    return _make_runtime(), cfg


def _check_knob_has_effect(key: str) -> None:
    if not key.startswith(("data.", "eval.", "model.", "rules.")) and key not in PRETRAINED_KNOBS:
        raise UsageError(f"--config.{key} has no effect here: it is read in training only")


def _find_unread(cfg: Any, assignments: list[tuple[str, str]], **facts: str) -> Callable[[Any], list[str]]:
    """A function from facts about data and model to the assigned knobs that have no effect; `facts` are the call's."""
    from configs import unread

    known, own = {key for key, _ in assignments}, {name: ({value}, value) for name, value in facts.items()}
    return lambda found: unread.unread(cfg, known, {**found, **own}, only_given=True)


def _select_checkpoint(
    args: flags.FlagValues, assignments: list[tuple[str, str]]
) -> tuple[Any, Any, str, list[int], str]:
    """--workdir=W@which -> (runtime, function from step to config, workdir, candidate steps, which)."""
    from configs import reader

    if args.ignore_key:
        raise UsageError(f"--ignore_key={args.ignore_key[0]} goes with --pretrained: it names a key of its config.json")
    name = _require_workdir(args)
    _start_jax(args)
    from train import checkpoint

    workdir, which = checkpoint.split_name(name)

    def config(step: int) -> Any:
        import json

        recorded = checkpoint.load_manifest(workdir, step)["config"]
        cfg = reader.from_json(json.dumps(recorded))
        cfg.mesh = "dp:*"  # the training run's mesh may not fit this machine
        cfg.eval.limit = None  # it limits evaluations during training only
        for key, _ in assignments:
            _check_knob_has_effect(key)
        return reader.override(cfg, assignments)

    runtime = _make_runtime()
    return runtime, config, workdir, checkpoint.select(workdir, which, runtime.say), which


def _eval(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    folder, asked = _pretrained_folder(args), args.task
    if args.dataset:
        assignments = [("data.name", args.dataset), *assignments]
    given = not args.dataset or any(key == "eval.split" for key, _ in assignments)

    def choose_split(cfg: Any, runtime: Any) -> Any:
        from train.verbs import evaluate as evaluate_verb

        cfg.eval.split = cfg.eval.split if given else evaluate_verb.default_split(cfg, runtime)
        return cfg

    if folder is not None:
        if not args.dataset:
            raise UsageError("--dataset is missing: what to evaluate on, as --dataset=lambada_openai_test")
        runtime, cfg = _pretrained_config(args, assignments, train__batch=8, eval__context=2048)
        from train.verbs import evaluate as evaluate_verb
        from train.verbs import load_model

        kind, held_out = evaluate_verb.eval_source(choose_split(cfg, runtime), runtime, asked)
        known, useless = {key for key, _ in assignments}, _find_unread(cfg, assignments, verb="eval", exam=kind)
        opened = load_model.open_pretrained(cfg, folder, runtime, held_out, None, args.ignore_key, known, useless)
        evaluate_verb.report(opened, held_out, kind)
        return DONE

    runtime, config, workdir, steps, which = _select_checkpoint(args, assignments)
    from train import checkpoint
    from train.evaluate import evaluate
    from train.verbs import evaluate as evaluate_verb
    from train.verbs import load_model

    def evaluate_step(step: int) -> None:
        cfg = choose_split(config(step), runtime)
        kind, held_out = evaluate_verb.eval_source(cfg, runtime, asked)
        useless = _find_unread(cfg, assignments, verb="eval", exam=kind)
        opened = load_model.open_checkpoint(cfg, workdir, step, runtime, held_out, unread=useless)
        evaluate_verb.report(opened, held_out, kind, workdir, step)

    if which != "all":
        checkpoint.first_restorable(workdir, steps, evaluate_step, runtime.say)
        return DONE
    failed = 0
    for step in steps:
        try:
            evaluate_step(step)
        except (checkpoint.CorruptCheckpoint, evaluate.NotFinite) as error:
            failed += 1
            runtime.say(f"{error}; going on with the others")
    return FAILED if failed else DONE


def _sample(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    if any(key == "mesh" for key, _ in assignments):
        raise UsageError("--config.mesh has no effect here: sample runs on one device")
    folder = _pretrained_folder(args)
    settings: dict[str, Any] = {k: args[k].value for k in ("prompt", "max_new_tokens", "stop", "seed", "timing")}
    how = {k: args[k].value for k in ("temperature", "top_k", "top_p", "min_p")}
    how["repetition"] = args.repetition_penalty
    if folder is not None:
        runtime, cfg = _pretrained_config(args, assignments)
        from train.verbs import load_model
        from train.verbs import sample as sample_verb

        useless = _find_unread(cfg, assignments, verb="sample")
        sample_verb.print_samples(
            load_model.open_language_model(cfg, runtime, folder, None, args.ignore_key, useless), **settings, **how
        )
        return DONE
    runtime, config, workdir, steps, which = _select_checkpoint(args, assignments)
    from train import checkpoint
    from train.verbs import load_model
    from train.verbs import sample as sample_verb

    if which == "all":
        raise UsageError("sample takes one checkpoint, not @all")

    def sample_step(step: int) -> None:
        cfg = config(step)
        useless = _find_unread(cfg, assignments, verb="sample")
        sample_verb.print_samples(
            load_model.open_language_model(cfg, runtime, workdir, step, unread=useless), **settings, **how
        )

    checkpoint.first_restorable(workdir, steps, sample_step, runtime.say)
    return DONE


def _convert(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    workdir = _require_workdir(args)
    if bool(args.pretrained) == bool(args.export):
        raise UsageError("convert takes --pretrained=DIR --workdir=W, or --workdir=W --export=DIR")
    if args.pretrained:
        runtime, cfg = _pretrained_config(args, assignments)
        from train.verbs import convert

        known, useless = {key for key, _ in assignments}, _find_unread(cfg, assignments, verb="convert --pretrained")
        convert.import_pretrained(
            cfg, os.path.expanduser(args.pretrained), workdir, runtime, args.ignore_key, known, useless
        )
        return DONE
    runtime, config, workdir, steps, which = _select_checkpoint(args, assignments)
    from train import checkpoint
    from train.verbs import convert

    if which == "all":
        raise UsageError("convert takes one checkpoint, not @all")
    to = os.path.expanduser(args.export)

    def export_step(step: int) -> None:
        cfg = config(step)
        convert.export_pretrained(
            cfg, workdir, step, to, runtime, _find_unread(cfg, assignments, verb="convert --export")
        )

    checkpoint.first_restorable(workdir, steps, export_step, runtime.say)
    return DONE


def _tokenizer(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    if not args.data or not args.output:
        raise UsageError("tokenizer takes --data=DATA --output=FILE, as --data=pydoc_text --output=bpe.json")
    if assignments:
        raise UsageError("tokenizer takes no --config.KEY=VALUE; use --data, --split, --field and --vocab_size")
    from train.verbs import train_tokenizer

    train_tokenizer.train_tokenizer(
        args.data, args.split, args.field, args.vocab_size, os.path.expanduser(args.output), _make_runtime()
    )
    return DONE


def _doctor(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    if assignments:
        raise UsageError("doctor takes no --config.KEY=VALUE; it checks the machine, or --data=NAME")
    if args.field and not args.data:
        raise UsageError(f"--field={args.field} needs --data: it names that data set's text field")
    _start_jax(args)
    from train.verbs import doctor

    well = (
        doctor.check_data(_make_runtime(), args.data, args.field)
        if args.data
        else doctor.check_machine(_make_runtime())
    )
    return DONE if well else FAILED


def _list(args: flags.FlagValues, assignments: list[tuple[str, str]]) -> int:
    if assignments:
        raise UsageError("list takes no --config.KEY=VALUE")
    from configs import listing

    match args.words:
        case []:
            from train.verbs.listing import list_families

            lines = list_families()
        case ["knobs"]:
            lines = listing.of_knobs(None)
        case ["knobs", section]:
            lines = listing.of_knobs(section)
        case [path] if path.endswith(".py"):
            lines = listing.of_file(path)
        case words:
            raise UsageError(f"list takes nothing, a config file, or knobs and a section, not {quote(' '.join(words))}")
    print("\n".join(lines), file=process.Terminal(sys.stdout), flush=True)
    return DONE


VERBS: dict[str, Callable[[flags.FlagValues, list[tuple[str, str]]], int]] = {
    "train": _train,
    "eval": _eval,
    "sample": _sample,
    "convert": _convert,
    "tokenizer": _tokenizer,
    "doctor": _doctor,
    "list": _list,
}

if __name__ == "__main__":
    process.exit_process(main(sys.argv[1:]))
