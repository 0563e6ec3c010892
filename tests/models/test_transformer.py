"""The Transformer against torch.nn.Transformer, run live: outputs, loss, gradients, text, files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models import pretrained
from models.core.spec import flatten
from models.pretrained import layouts
from tests.support.cases import random_variables, to_inputs
from tests.support.harness import assert_gradients_close
from train.generate.beam_search import beam_search
from train.tasks import get_task, with_options

B, T, S, V = 4, 7, 9, 30
SLOW, WEEKLY = (5, 6, 8), (2, 3, 4, 7, 9)  # with the first two every value of every field comes in the slow ones
NO_TORCH = "PyTorch is not installed (requirements-parity.txt)"
SEEDS = [
    0,
    *(pytest.param(n, marks=pytest.mark.slow) for n in (1, *SLOW)),
    *(pytest.param(n, marks=pytest.mark.weekly) for n in WEEKLY),
]


def shape_of(seed: int) -> dict:
    """A random network; the first is the paper's in small, the second most unlike it."""
    if seed == 0:
        return dict(width=16, heads=4, depth=2, decoder_depth=2, hidden=32, activation="relu")
    draw = np.random.default_rng(seed)
    one = dict(
        pre_norm=True, activation="gelu", positions="learned", tied="none", source_vocab=21, scaled=False, bias=False
    )
    tied = str(draw.choice(["all", "decoder", "none"]))
    more = dict(
        pre_norm=bool(draw.integers(2)),
        final_norm=bool(draw.integers(2)),
        activation=str(draw.choice(["relu", "gelu"])),
        positions=str(draw.choice(["sinusoidal", "learned"])),
        tied=tied,
        source_vocab=21 if tied != "all" and draw.integers(2) else None,
        scaled=bool(draw.integers(2)),
        bias=bool(draw.integers(2)),
    )
    depths = {name: int(draw.integers(1, 4)) for name in ("depth", "decoder_depth")}
    return dict(width=24, heads=int(draw.choice([1, 2, 3, 6])), hidden=40, **depths, **(one if seed == 1 else more))


def reference(c):
    """torch.nn.Transformer with tables and a head under the names of the layout, all parameters random."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)

    class Net(torch.nn.Transformer):
        def __init__(self) -> None:
            how = dict(dropout=0.0, activation=c.activation, batch_first=True, norm_first=c.pre_norm, bias=c.bias)
            super().__init__(c.width, c.heads, c.depth, c.decoder_depth, c.hidden, **how)
            if not c.has_final_norm:
                self.encoder.norm = self.decoder.norm = None
            self.embed = torch.nn.Embedding(c.vocab, c.width)
            if c.tied != "all":
                self.source_embed = torch.nn.Embedding(c.source_vocab or c.vocab, c.width)
            if c.tied == "none":
                self.head = torch.nn.Linear(c.width, c.vocab, bias=False)
            if c.positions == "learned":
                self.position, self.source_position = (torch.nn.Embedding(c.context, c.width) for _ in range(2))

        def placed(self, table, places, tokens):
            x = table(tokens) * (c.width**0.5 if c.scaled else 1)
            if places is not None:
                return x + places.weight[: tokens.shape[1]]
            angle = torch.arange(tokens.shape[1])[:, None] / 10000 ** (torch.arange(0, c.width, 2) / c.width)
            signal = torch.zeros(tokens.shape[1], c.width)
            signal[:, 0::2], signal[:, 1::2] = angle.sin(), angle.cos()
            return x + signal

        def logits(self, source, mask, tokens):
            read = self.source_embed if c.tied != "all" else self.embed
            x = self.placed(read, getattr(self, "source_position", None), source)
            y = self.placed(self.embed, getattr(self, "position", None), tokens)
            later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
            pad = mask == 0
            h = self(x, y, tgt_mask=later, src_key_padding_mask=pad, memory_key_padding_mask=pad)
            return h @ (self.head if c.tied == "none" else self.embed).weight.T

    torch.manual_seed(0)
    net = Net()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return torch, net


def batch_of(c) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(7)
    tokens = draw.integers(0, V, (B, T + 1)).astype(np.int32)
    return {
        "source": draw.integers(0, c.source_vocab or V, (B, S)).astype(np.int32),
        "source_mask": (np.arange(S) < np.array([S, 5, 1, 7])[:, None]).astype(np.float32),
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weight": (draw.random((B, T)) < 0.7).astype(np.float32),
    }


def built(seed: int, folder: Path):
    save_file = pytest.importorskip("safetensors.torch", reason=NO_TORCH).save_file

    shape = shape_of(seed)
    wanted = models.build("transformer", vocab=V, vocab_multiple=16, context=12, **shape)
    torch, net = reference(wanted.config)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "their.safetensors")
    given = {k: shape[k] for k in ("heads", "activation", "pre_norm", "scaled") if k in shape}
    how = dict(vocab_multiple=16, context=12, **given)
    model, variables = pretrained.load("transformer", folder / "their.safetensors", **how)
    inferred = ("bias", "hidden", "depth", "decoder_depth", "positions", "tied", "has_final_norm")
    assert all(getattr(model.config, name) == getattr(wanted.config, name) for name in inferred)
    return torch, net, model, variables


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("seed", SEEDS)
def test_it_is_torchs(seed: int, tmp_path: Path) -> None:
    """Logits, the loss with label label_smoothing, every gradient, and what is written greedily."""
    torch, net, model, variables = built(seed, tmp_path)
    batch = batch_of(model.config)
    source, mask, tokens, targets, w = (torch.tensor(v) for v in batch.values())

    logits = net.logits(source, mask, tokens)
    each = torch.nn.functional.cross_entropy(logits.mT, targets.long(), label_smoothing=0.1, reduction="none")
    loss = (each * w).sum() / w.sum()
    loss.backward()

    task = with_options(get_task("translation"), label_smoothing=0.1)

    def ours(params):
        out = model.apply({"params": params}, batch, logits=False)
        total, weight = task.terms(out.value, {k: jnp.asarray(v) for k, v in batch.items()})["loss"]
        return jnp.sum(total) / jnp.sum(weight), model.predict({"params": params}, batch)

    (found, value), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables["params"])
    want = logits.detach().numpy()
    assert value.shape == want.shape
    assert np.linalg.norm(value - want) <= 2e-5 * np.linalg.norm(want)
    assert abs(found - loss.item()) <= 2e-5 * loss.item()

    named, grads, got, wanted = dict(net.named_parameters()), flatten(grads), {}, {}
    for row in layouts.transformer.rows(model.config):
        leaf = np.asarray(grads[row.path])
        theirs = [row.to_leaf(named[name].grad.numpy()) for name in row.names(leaf.shape)]
        wanted[row.path] = np.stack(theirs) if row.stacked_dims else theirs[0]
        got[row.path] = leaf[tuple(map(slice, wanted[row.path].shape))]
    assert set(got) == set(grads)
    assert_gradients_close(got, wanted, 2e-5)

    written = torch.full((B, 1), 1)
    with torch.no_grad():
        for _ in range(10):
            written = torch.cat([written, net.logits(source, mask, written)[:, -1:].argmax(-1)], 1)
    said, _ = beam_search(model, variables, batch["source"], batch["source_mask"], start=1, stop=2, count=10, beams=1)
    for mine, row in zip(np.asarray(said), written[:, 1:].tolist(), strict=True):
        end = row.index(2) if 2 in row else 10
        assert mine.tolist() == row[:end] + [2] * (10 - end)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("seed", [0, 1])
def test_saved_parameters_are_torchs(seed: int, tmp_path: Path) -> None:
    """Load, save, load: bit for bit; torch takes the file strictly."""
    load_file = pytest.importorskip("safetensors.torch", reason=NO_TORCH).load_file

    _, net, model, variables = built(seed, tmp_path)
    pretrained.save(model, variables, tmp_path / "ours.safetensors")
    mine, theirs = load_file(tmp_path / "ours.safetensors"), net.state_dict()
    assert mine.keys() == theirs.keys()
    assert all((mine[k] == theirs[k]).all() for k in mine)
    net.load_state_dict(mine, strict=True)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch", reason=NO_TORCH).save_file

    torch, net, *_ = built(0, tmp_path)
    tensors = net.state_dict()
    save_file({k: v for k, v in tensors.items() if k != "decoder.layers.1.norm3.bias"}, tmp_path / "few.safetensors")
    with pytest.raises(UsageError, match=r"'decoder\.layers\.1\.norm3\.bias' is missing"):
        pretrained.load("transformer", tmp_path / "few.safetensors", heads=4)
    save_file({**tensors, "encoder.bias": torch.zeros(2)}, tmp_path / "more.safetensors")
    with pytest.raises(UsageError, match=r"'encoder\.bias' is not part"):
        pretrained.load("transformer", tmp_path / "more.safetensors", heads=4)
    with pytest.raises(UsageError, match=r"cannot infer 'heads' of a transformer.*pass heads="):
        pretrained.load("transformer", tmp_path / "their.safetensors")
    save_file({"embed.weight": torch.zeros(2, 2)}, tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="no Transformer of torch"):
        pretrained.load("transformer", tmp_path / "none.safetensors", heads=4)


def tiny(**more) -> models.Model:
    return models.build("transformer", **{**dict(vocab=V, context=12, width=16, heads=4, depth=2, hidden=32), **more})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(heads=3), "heads = 3 must be a divisor of width=16"),
        (dict(width=15, heads=3), "width = 15 must be even for sinusoidal positions"),
        (dict(source_vocab=9), "source_vocab = 9 must be None for tied='all'"),
        (dict(tied="both"), "tied"),
        (dict(positions="rotary"), "positions"),
        (dict(decoder_depth=0), "decoder_depth = 0 must be positive"),
    ],
)
def test_bad_fields_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tiny(**fields)


def test_bad_inputs_are_refused() -> None:
    model = tiny()
    variables = jax.eval_shape(model.init, jax.random.key(0))
    tokens, long = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 13), jnp.int32)

    def run(inputs, cache=None):
        return jax.eval_shape(lambda v: model.apply(v, inputs, cache=cache).value, variables)

    with pytest.raises(UsageError, match=r"needs inputs..source.. or a cache; got tokens and no cache"):
        run(tokens)
    with pytest.raises(UsageError, match="context = 12 must be at least the 13 tokens of the source"):
        run({"tokens": tokens, "source": long})
    with pytest.raises(UsageError, match="context = 12 must be at least the 13 tokens of the input"):
        run({"tokens": long, "source": tokens})
    with pytest.raises(UsageError, match="source has 3 tokens; the cache has room for 2"):
        run({"tokens": tokens, "source": tokens}, model.cache(1, 3, 2))
    with pytest.raises(UsageError, match=r"context = 12 must be at least the cache.s 13 source tokens"):
        model.cache(1, 3, 13)
    with pytest.raises(UsageError, match="'gpt' is no translator"):
        models.build("gpt", width=16, heads=2, depth=1).cache(1, 3, 5)


def test_backends_and_the_alignment_agree() -> None:
    """Attention by another backend is the same; the alignment is of real tokens alone, and sums to 1."""
    model, batch = tiny(), {k: v for k, v in batch_of(tiny().config).items() if k not in ("targets", "weight")}
    variables, other = random_variables(model), tiny(attention="xla")

    @jax.jit
    def run(variables, inputs):
        share = model.module.alignment(variables, inputs, other.config)
        return model.predict(variables, inputs), other.predict(variables, inputs), share

    want, got, share = run(variables, to_inputs(batch))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    share = np.asarray(share)
    assert share.shape == (B, T, S)
    np.testing.assert_allclose(share.sum(-1), 1, rtol=1e-5)
    assert (share[np.broadcast_to(batch["source_mask"][:, None] == 0, share.shape)] == 0).all()
    assert (share[np.broadcast_to(batch["source_mask"][:, None] == 1, share.shape)] > 0).all()


def test_padding_of_tokens_on_the_left_changes_nothing() -> None:
    """Tokens of a position below 0 are not seen, and the others are where their positions say."""
    model = tiny()
    variables, batch, predict = random_variables(model), batch_of(model.config), jax.jit(model.predict)
    source = {k: batch[k] for k in ("source", "source_mask")}
    alone = predict(variables, {**source, "tokens": batch["tokens"]})
    tokens = np.concatenate([np.full((B, 2), 3, np.int32), batch["tokens"]], 1)
    position = np.broadcast_to(np.maximum(np.arange(T + 2) - 2, -1), (B, T + 2))
    padded = predict(variables, {**source, "tokens": tokens, "position": position})
    np.testing.assert_allclose(padded[:, 2:], alone, rtol=1e-5, atol=1e-5)
