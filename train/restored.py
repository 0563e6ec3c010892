"""The composition root of all that starts from a checkpoint: evaluation and sampling, on any devices."""

from typing import Any

import jax
import jax.numpy as jnp

from data import evaluation, sources, tokenizers
from errors import UsageError
from models.spec import abstract
from train import checkpoint, evaluate, sample
from train.host import Host
from train.setup import Config, Setup, load_source, names_of, set_up


def restore_variables(setup: Setup, workdir: str, n: int) -> dict[str, Any]:
    """Parameters and running statistics of a checkpoint, digests verified."""
    specs = {"params": setup.model.specs["params"], "stats": setup.model.specs.get("stats", {})}
    dtypes = {"params": setup.dtype, "stats": jnp.float32}
    target = {
        part: jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            abstract(specs[part], dtypes[part]),
            setup.place.shardings(specs[part]),
        )
        for part in specs
    }
    return checkpoint.restore(workdir, n, target)


def evaluate_checkpoint(
    cfg: Config, workdir: str, n: int, host: Host, devices: list[jax.Device] | None = None
) -> evaluate.Scores:
    """Restore a checkpoint on any devices (all where None) and measure it on the held-out split."""
    held_out = load_source(cfg, host, names_of(cfg)[0], cfg.eval.split)
    setup = set_up(cfg, host, held_out, checkpoint.load_tokenizer(workdir, n), devices)
    variables = restore_variables(setup, workdir, n)
    exam = evaluation.exam(held_out, setup.tokenizer, setup.context, setup.prepare)
    examine = evaluate.make_examiner(setup.model, setup.task, setup.place)
    return evaluate.evaluate(examine, variables, exam, setup.place, cfg.eval.batch or cfg.train.batch, cfg.eval.limit)


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
    if description is None:
        raise UsageError(f"{workdir} holds a {cfg.model.family}, which does not generate text")
    tokenizer = tokenizers.restore(description)
    blank = sources.Texts((), {"name": cfg.data.name})
    cfg.mesh = "dp:1"
    setup = set_up(cfg, host, blank, description, jax.local_devices()[:1])
    variables = restore_variables(setup, workdir, n)
    ids, end = tokenizer.encode(prompt), tokenizer.vocab - 1
    written: list[int] = []
    host.stdout.write(prompt)
    chunks = sample.generate(
        setup.model, variables, ids, jax.random.key(seed), count=tokens, temperature=temperature, top_k=top_k
    )
    for chunk in chunks:
        before = tokenizer.decode(written)
        written += chunk.tolist()
        done = end in written
        written = written[: written.index(end)] if done else written
        host.stdout.write(tokenizer.decode(written)[len(before) :])
        host.stdout.flush()
        if done:
            break
    host.say("")
