"""Networks of transformers at tiny sizes, and whether ours are the same: logits, loss, gradients, greedy tokens."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.core.spec import flatten
from tests.support.hub_kinds import KINDS

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (requirements-parity.txt)")


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def reference(kind: str, seed: int, **changes: Any) -> Any:
    """Their model of a random config, every parameter random, those of norms and biases too."""
    name, draw = KINDS[kind]
    values = plain(draw(np.random.default_rng(seed))) | changes
    drop = {"gpt2": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}.get(kind, {})
    made = getattr(transformers, name)
    config = made.config_class(**values, **drop, attn_implementation="eager")
    torch.manual_seed(seed)
    module = made(config).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            middle = parameter.mean() if norm else 0.0  # 1, or 0 where 1 is added
            parameter.copy_(middle + 0.3 * torch.randn_like(parameter))
            if kind == "gemma4_text" and "q_norm" in name:  # divides scores by nothing: it's norms that keep them small
                parameter.mul_(parameter.numel() ** -0.5)
        for name, buffer in module.named_buffers():
            if name in module.state_dict():
                buffer.copy_(("scalar" in name) + 0.3 * torch.randn_like(buffer))  # factors are about 1
    return module


def assert_close(ours: Any, theirs: Any, floor: float = 0.0, tolerance: float = 2e-5) -> None:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), floor)


def gradients(module: Any, folder: Path) -> dict[str, np.ndarray]:
    """The gradients of their parameters, by our paths: saved and loaded as if they were the parameters."""
    copy = deepcopy(module)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.copy_(module.get_parameter(name).grad)
    copy.save_pretrained(folder / "gradients")
    return {k: np.asarray(v) for k, v in flatten(models.load_pretrained(folder / "gradients")[1]["params"]).items()}


def compare(module: Any, folder: Path) -> None:
    """Logits, loss, the gradient of every parameter, and twelve greedy tokens."""
    model, variables = models.load_pretrained(folder)
    vocab, draw = model.config.vocab, np.random.default_rng(1)
    tokens = draw.integers(0, vocab, (2, 24))
    theirs = module(torch.tensor(tokens), labels=torch.tensor(tokens))
    theirs.loss.backward()

    def loss(params: Any) -> Any:
        out = model.apply({**variables, "params": params}, tokens)
        logits = out.value[..., :vocab]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], -1)
        return sum((s / w for s, w in out.aux_losses.values()), start=-jnp.mean(picked)), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert_close(logits, theirs.logits.detach())
    assert_close(value, theirs.loss.detach())
    theirs_grads, ours = gradients(module, folder), flatten(grads)
    assert set(ours) == set(theirs_grads)
    whole = np.sqrt(sum(float(np.sum(g.astype(np.float64) ** 2)) for g in theirs_grads.values()))
    floor = 0.01 * whole / len(ours) ** 0.5
    for name, grad in ours.items():
        assert_close(grad, theirs_grads[name], floor)

    start = tokens[:, :6]
    want = module.generate(
        torch.tensor(start), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    ).numpy()
    np.testing.assert_array_equal(greedy_continuation(model, variables, start, 12), want)


def greedy_continuation(model: models.Model, variables: Any, start: np.ndarray, count: int) -> np.ndarray:
    """Greedy tokens through the cache, those given one at a time too: one program. The contract feeds it many."""
    rows, given = start.shape

    def step(carry: Any, prompt: Any) -> Any:
        cache, found = carry
        now = jnp.where(prompt < 0, found, prompt)
        out = model.apply(variables, now[:, None], cache=cache)
        return (out.cache, jnp.argmax(out.value[:, 0], -1)), now

    @jax.jit
    def run(variables: Any, prompt: Any) -> Any:
        cache = model.cache(rows, given + count)
        return jax.lax.scan(step, (cache, prompt[0]), prompt)[1]

    prompt = np.concatenate([start, np.full((rows, count), -1)], 1).T  # -1 where a token is to be generated
    return np.asarray(run(variables, prompt.astype(np.int32))).T
