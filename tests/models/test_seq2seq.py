"""The recurrent translators against torch's LSTM and LSTMCell, run live: outputs, gradients, alignments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models.core.spec import flatten
from tests.support.cases import to_inputs
from tests.support.harness import assert_gradients_close

B, T, S, V = 4, 6, 8, 20
LENGTHS = np.array([S, 3, 1, 6])
CASES = {
    "sutskever": dict(
        attention_score="none", depth=2, bidirectional=False, reverse_source=True, tied="none", source_vocab=15
    ),
    "no_attention_tied": dict(attention_score="none"),
    "bahdanau": dict(attention_score="additive", score_width=5),
    "bahdanau_deep": dict(attention_score="additive", depth=2, tied="decoder"),
    "luong_dot": dict(attention_score="dot", input_feeding=False, bidirectional=False),
    "luong_general": dict(attention_score="general", depth=2, tied="none"),
    "luong_general_reversed": dict(attention_score="general", bidirectional=False, reverse_source=True),
}
MARKS: dict[str, Any] = {  # the others are of the default suite; what the last is made of comes in the others
    **dict.fromkeys(("no_attention_tied", "bahdanau_deep", "luong_dot"), pytest.mark.slow),
    "luong_general_reversed": pytest.mark.weekly,
}


def tiny(**more: Any) -> models.Model:
    return models.build("seq2seq", **{**dict(vocab=V, vocab_multiple=V, context=10, embed=6, width=8), **more})


def started(name: str) -> tuple[models.Model, dict[str, Any]]:
    model, draw = tiny(**CASES[name]), np.random.default_rng(1)
    return model, jax.tree.map(
        lambda spec: np.float32(0.4 * draw.normal(size=spec.shape)), {"params": model.specs["params"]}
    )


def batch_of(c: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(3)
    return {
        "source": draw.integers(0, c.source_vocab or V, (B, S)).astype(np.int32),
        "source_mask": (np.arange(S) < LENGTHS[:, None]).astype(np.float32),
        "tokens": draw.integers(0, V, (B, T)).astype(np.int32),
    }


class Reference:
    """The network of a Config in torch: leaves that are plain matrices by our paths, the rest torch's modules."""

    def __init__(self, torch: Any, c: Any, params: dict[str, np.ndarray]) -> None:
        self.torch, self.c, self.own, self.modules = torch, c, {}, {}
        ways = ("backward",) if c.reverse_source else ("forward", "backward")[: 1 + c.bidirectional]
        D = c.width
        self.encoder = torch.nn.LSTM(c.embed, D // len(ways), c.depth, batch_first=True, bidirectional=len(ways) == 2)
        self.cells = [torch.nn.LSTMCell(D if i else c.embed + c.extra_width, D) for i in range(c.depth)]
        for i in range(c.depth):
            for n, way in enumerate(ways):
                self._bind(f"encoder/cells/{i}/{way}", self.encoder, f"_l{i}" + "_reverse" * n)
            self._bind(f"decoder/cells/{i}", self.cells[i], "")
        for path, value in params.items():
            if path in self.modules:
                with torch.no_grad():
                    self.modules[path].copy_(torch.tensor(self._theirs(value)))
            else:
                self.own[path] = torch.tensor(value, requires_grad=True)

    def _bind(self, path: str, module: Any, end: str) -> None:
        for ours, theirs in (("input", "ih"), ("state", "hh")):
            for kind, name in (("kernel", "weight"), ("bias", "bias")):
                self.modules[f"{path}/{ours}/{kind}"] = getattr(module, f"{name}_{theirs}{end}")

    @staticmethod
    def _theirs(value: np.ndarray) -> np.ndarray:
        """[I G H] -> [G*H I], and [G H] -> [G*H]."""
        return value.reshape(-1) if value.ndim == 2 else value.transpose(1, 2, 0).reshape(-1, value.shape[0])

    def gradients(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        found = {path: value.grad.numpy() for path, value in self.own.items()}
        for path, p in self.modules.items():
            g, shape = p.grad.numpy(), shapes[path]
            found[path] = g.reshape(shape) if len(shape) == 2 else g.reshape(*shape[1:], shape[0]).transpose(2, 0, 1)
        return found

    def encode(self, source: Any) -> tuple[Any, list[Any]]:
        torch, c = self.torch, self.c
        turned = torch.tensor(
            np.where(np.arange(S) < LENGTHS[:, None], LENGTHS[:, None] - 1 - np.arange(S), np.arange(S))
        )
        x = self.own.get("embed/source", self.own["embed/token"])[source]
        flip = lambda x: torch.gather(x, 1, turned[:, :, None].expand_as(x)) if c.reverse_source else x  # noqa: E731
        lengths = torch.tensor(LENGTHS)
        packed = torch.nn.utils.rnn.pack_padded_sequence(flip(x), lengths, batch_first=True, enforce_sorted=False)
        out, last = self.encoder(packed)
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=S)
        h, s = (x.reshape(c.depth, -1, B, x.shape[-1]).transpose(1, 2).reshape(c.depth, B, -1) for x in last)
        return flip(out), list(zip(h, s, strict=True))

    def look(self, h: Any, memory: Any) -> tuple[Any, Any]:
        torch, own = self.torch, self.own
        if self.c.attention_score == "additive":
            hidden = memory @ own["decoder/key/kernel"] + (h @ own["decoder/query/kernel"])[:, None]
            score = hidden.tanh() @ own["decoder/score"]
        else:
            keys = memory @ own["decoder/key/kernel"] if self.c.attention_score == "general" else memory
            score = (keys * h[:, None]).sum(-1)
        pad = torch.tensor(np.arange(S) >= LENGTHS[:, None])
        share = score.masked_fill(pad, -torch.inf).softmax(-1)
        return (share[:, :, None] * memory).sum(1), share

    def __call__(self, source: Any, tokens: Any) -> tuple[Any, Any]:
        """Logits [B T V] and alignment [B T S]."""
        torch, c, own = self.torch, self.c, self.own
        memory, states = self.encode(source)
        read, reads, shares = torch.zeros(B, c.readout_width), [], []
        for t in range(T):
            y = own["embed/token"][tokens[:, t]]
            x = y
            if c.attention_score == "additive":
                seen, share = self.look(states[-1][0], memory)
                x = torch.cat([y, seen], -1)
            elif c.feeds_readout:
                x = torch.cat([y, read], -1)
            for i, cell in enumerate(self.cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
            if c.attention_score == "additive":
                read = torch.cat([x, y, seen], -1) @ own["decoder/read/kernel"]
                read = torch.maximum(read[:, 0::2], read[:, 1::2])
            elif c.attention_score == "none":
                read, share = x @ own["decoder/read/kernel"] if "decoder/read/kernel" in own else x, torch.zeros(B, S)
            else:
                seen, share = self.look(x, memory)
                read = torch.tanh(torch.cat([seen, x], -1) @ own["decoder/read/kernel"])
            reads.append(read)
            shares.append(share)
        table = own["head"] if c.tied == "none" else own["embed/token"]
        return torch.stack(reads, 1) @ table.T, torch.stack(shares, 1)


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def test_it_is_torchs(name: str) -> None:
    """Logits, alignments and every gradient, of sources of different lengths."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
    model, variables = started(name)
    params = {k: np.array(v) for k, v in flatten(variables["params"]).items()}
    batch, theirs = batch_of(model.config), Reference(torch, model.config, params)
    assert set(params) == set(theirs.own) | set(theirs.modules)
    weights = np.random.default_rng(1).normal(size=(B, T, V)).astype(np.float32)
    logits, share = theirs(torch.tensor(batch["source"]), torch.tensor(batch["tokens"]))
    (logits.log_softmax(-1) * torch.tensor(weights)).sum().backward()

    looks, c = model.config.attention_score != "none", model.config

    def ours(params: Any) -> tuple[Any, Any]:
        value = model.predict({"params": params}, batch)
        share = model.module.alignment({"params": params}, to_inputs(batch), c) if looks else None
        return jnp.sum(jax.nn.log_softmax(value) * weights), (value, share)

    (_, (value, found)), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    want = logits.detach().numpy()
    assert np.linalg.norm(value - want) <= 2e-5 * np.linalg.norm(want)
    got = {k: np.asarray(v) for k, v in flatten(grads).items()}
    assert_gradients_close(got, theirs.gradients({k: v.shape for k, v in got.items()}), 2e-5)
    if looks:
        np.testing.assert_allclose(found, share.detach().numpy(), rtol=2e-5, atol=1e-6)
    else:
        with pytest.raises(UsageError, match="attention_score = 'none' has no alignment"):
            model.module.alignment(variables, to_inputs(batch), c)


@pytest.mark.parametrize("name", ["luong_general", pytest.param("bahdanau", marks=pytest.mark.slow)])
def test_padding_of_tokens_leaves_the_state_alone(name: str) -> None:
    """Tokens of a position below 0, wherever they stand, are as if they were not there."""
    model, variables = started(name)
    batch, predict = batch_of(model.config), jax.jit(model.predict)
    alone = predict(variables, batch)
    at = [1, 3]
    tokens = np.insert(batch["tokens"], at, 7, 1)
    position = np.insert(np.broadcast_to(np.arange(T), (B, T)), at, -1, 1)
    found = np.delete(predict(variables, {**batch, "tokens": tokens, "position": position}), [1, 4], 1)
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(width=7), "width = 7 must be even for two directions"),
        (dict(reverse_source=True), "reverse_source = True must be False with bidirectional"),
        (dict(source_vocab=9), "source_vocab = 9 must be None for tied='all'"),
        (dict(score_width=9), "score_width = 9 must be None unless attention_score is 'additive'"),
        (dict(attention_score="bilinear"), "attention_score"),
        (dict(tied="both"), "tied"),
    ],
)
def test_bad_fields_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tiny(**fields)


def test_a_forget_gate_may_start_open() -> None:
    """In the encoder and the decoder alike."""
    few: dict[str, Any] = dict(attention_score="none", bidirectional=False)
    shut, wide = (flatten(tiny(forget_bias=f, **few).init(jax.random.key(0))["params"]) for f in (0.0, 1.0))
    for path in shut:
        opened = np.zeros(shut[path].shape)
        if path.endswith("input/bias"):
            opened[1] = 1
        np.testing.assert_allclose(np.asarray(wide[path]) - np.asarray(shut[path]), opened, atol=1e-6)
