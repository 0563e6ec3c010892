"""The composition root of all that starts from a checkpoint: evaluation and sampling, on any devices."""

import jax

from data import tokenizers
from data.evaluation import Exam
from data.kinds import Source, Texts
from errors import UsageError
from train import begin, checkpoint, evaluate, sample
from train.host import Host
from train.record import pictures
from train.setup import Config, Setup, exam_of, load_source, measure_views, names_of, set_up
from train.update import losses, optim, step


def restore_state(setup: Setup, workdir: str, n: int) -> step.State:
    """What a checkpoint's state holds to be evaluated, digests verified: all but, mostly, the optimizer's part."""
    cfg = setup.cfg.optim
    wanted = {"params", "stats", "ema"} | ({"opt"} if cfg.name == "schedule_free" else set())
    target = begin.target_of(setup, optim.make(cfg, setup.model.specs["params"]))
    return checkpoint.restore(workdir, n, {part: target[part] for part in wanted})


def evaluate_checkpoint(
    cfg: Config, workdir: str, n: int, host: Host, devices: list[jax.Device] | None = None
) -> evaluate.Scores:
    """Restore a checkpoint on any devices (all where None) and measure it on the held-out split."""
    return _examined(cfg, workdir, n, host, devices)[-1]


def report_checkpoint(cfg: Config, workdir: str, n: int, host: Host) -> None:
    """Measure a checkpoint, say the figures, and draw into a local workdir what they are made of."""
    setup, held_out, exam, scores = _examined(cfg, workdir, n, host, None)
    host.say(f"checkpoint {n:,} of {workdir} on {cfg.data.name}, {cfg.eval.split}: {evaluate.in_words(scores)}")
    if scores.rows is None or jax.process_index() or "://" in workdir:
        return
    try:
        drawn = pictures.draw(setup, held_out, exam, scores.rows, workdir, n)
    except OSError as error:  # another's run may be measured where one must not write
        host.say(f"nothing drawn: {error}")
        return
    if drawn:
        host.say(f"to look at, in {drawn[0].parent}: {', '.join(path.name for path in drawn)}")


def _examined(
    cfg: Config, workdir: str, n: int, host: Host, devices: list[jax.Device] | None
) -> tuple[Setup, Source, Exam, evaluate.Scores]:
    held_out = load_source(cfg, host, names_of(cfg)[0], cfg.eval.split)
    setup = set_up(cfg, host, held_out, checkpoint.load_tokenizer(workdir, n), devices)
    state, exam = restore_state(setup, workdir, n), exam_of(setup, held_out)
    examine = evaluate.make_examiner(setup.model, setup.task, setup.place)
    return setup, held_out, exam, measure_views(setup, examine, state, exam, cfg.eval.limit)


def sample_checkpoint(
    cfg: Config,
    workdir: str,
    n: int,
    host: Host,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> None:
    """Print a prompt and the text that a checkpoint's model puts after it."""
    description = checkpoint.load_tokenizer(workdir, n)
    if description is None or losses.find(cfg.loss).trait != "language_model":
        raise UsageError(
            f"{workdir} holds a {cfg.model.family} trained by loss {cfg.loss}, which does not generate text"
        )
    tokenizer = tokenizers.restore(description)
    blank = Texts((), {"name": cfg.data.name})
    cfg.mesh = "dp:1"
    setup = set_up(cfg, host, blank, description, jax.local_devices()[:1])
    variables = list(step.views(restore_state(setup, workdir, n), cfg.optim).values())[-1]
    ids, end = tokenizer.encode(prompt), tokenizer.vocab - 1
    written: list[int] = []
    shown = 0  # characters
    host.stdout.write(prompt)
    chunks = sample.generate(
        setup.model, variables, ids, jax.random.key(seed), count=tokens, temperature=temperature, top_k=top_k
    )
    for chunk in chunks:
        written += chunk.tolist()
        done = end in written
        written = written[: written.index(end)] if done else written
        text = tokenizer.decode(written)
        ready = len(text.rstrip("\ufffd"))  # the rest may be a character cut in two
        host.stdout.write(text[shown:ready])
        host.stdout.flush()
        shown = max(shown, ready)
        if done:
            break
    host.say(tokenizer.decode(written)[shown:])
