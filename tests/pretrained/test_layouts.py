"""Parameters in the layouts that others publish, against the reference implementations run live."""

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
from tests.support.cases import random_variables

torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-parity.txt)")
T, B, I, H = 7, 3, 5, 6


def reference(cell: str, **shape):
    kind = {"elman": torch.nn.RNN, "elman_relu": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    more = {"nonlinearity": "relu"} if cell == "elman_relu" else {}
    torch.manual_seed(sum(map(ord, f"{cell}{sorted(shape.items())}")))
    return kind(I, H, batch_first=True, **more, **shape)


def loaded(module, folder: Path, cell: str) -> tuple[models.Model, dict]:
    return pretrained.load("rnn", saved(module, folder), cell=cell)


def saved(module, folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(module.state_dict(), folder / "their.safetensors")
    return folder / "their.safetensors"


def close(a, b) -> None:
    a, b = np.asarray(a), b.detach().numpy()
    assert a.shape == b.shape
    assert np.linalg.norm(a - b) <= 2e-5 * np.linalg.norm(b)


COVERING = [dict(num_layers=2, bidirectional=True), dict(num_layers=3, bias=False)]  # each value of each choice
OTHERS = [dict(), dict(bidirectional=True, bias=False)]
CELLS = ("elman", "elman_relu", "gru", "lstm")
CASES = [
    *((cell, shape) for cell in CELLS for shape in COVERING),
    *(("lstm", dict(proj_size=4)), ("lstm", dict(proj_size=2, num_layers=2, bidirectional=True))),
    *(pytest.param(cell, shape, marks=pytest.mark.weekly) for cell in CELLS for shape in OTHERS),
]


@pytest.mark.parametrize(("cell", "shape"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_recurrent_networks_are_torchs(cell: str, shape: dict, tmp_path: Path) -> None:
    """Outputs at every time, last states, and all gradients, of sequences of different lengths."""
    module = reference(cell, **shape)
    model, variables = loaded(module, tmp_path, cell)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(B, T, I)).astype(np.float32)
    lengths = np.array([T, 4, 1])
    mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
    weights = draw.normal(
        size=(B, T, model.specs and (shape.get("proj_size") or H) * (1 + shape.get("bidirectional", 0)))
    )
    weights = weights.astype(np.float32)

    given = torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(given, torch.tensor(lengths), batch_first=True)
    theirs, last = module(packed)
    theirs, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs, batch_first=True)
    (theirs * torch.tensor(weights)).sum().backward()

    def ours(params, x):
        out = model.apply({"params": params}, {"features": x, "mask": jnp.asarray(mask)})
        return jnp.sum(out.value * weights), out

    (_, out), (grads, slope) = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(
        variables["params"], jnp.asarray(x)
    )
    close(out.value, theirs)
    close(slope, given.grad)
    named = dict(module.named_parameters())
    for row in layouts.rnn.rows(model.config):
        close(row.to_tensor(np.asarray(flatten(grads)[row.path])), named[row.name].grad)
    if not shape.get("bidirectional"):
        h, c = last if cell == "lstm" else (last, None)
        for i in range(model.config.depth):
            close(out.cache[str(i)]["h"], h[i])
            if c is not None:
                close(out.cache[str(i)]["c"], c[i])


def test_saved_parameters_are_torchs(tmp_path: Path) -> None:
    """Load, save, load: bit for bit, under a prefix too; torch takes the file strictly."""
    from safetensors.torch import load_file

    module = reference("lstm", proj_size=4, num_layers=2, bidirectional=True)
    model, variables = loaded(module, tmp_path, "lstm")
    pretrained.save(model, variables, tmp_path / "ours.safetensors", prefix="lstm.")
    again = {k.removeprefix("lstm."): v for k, v in load_file(tmp_path / "ours.safetensors").items()}
    module.load_state_dict(again, strict=True)
    back = pretrained.load("rnn", tmp_path / "ours.safetensors", prefix="lstm.")[1]
    for name, leaf in flatten(variables).items():
        np.testing.assert_array_equal(leaf, flatten(back)[name])


def spoil(tensors: dict, name: str, change) -> dict:
    return {**tensors, name: change(tensors[name])}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "bias_hh_l0"}, "'bias_hh_l0' is missing"),
        (lambda t: {**t, "fc.weight": t["bias_hh_l0"].clone()}, "'fc.weight' is not part"),
        (lambda t: spoil(t, "bias_hh_l0", lambda v: v[1:].clone()), "'bias_hh_l0' is (23,), not (24,)"),
        (lambda t: {"fc.weight": t["bias_hh_l0"].clone()}, "no recurrent network of torch"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change, says: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(change(reference("lstm").state_dict()), tmp_path / "bad.safetensors")
    with pytest.raises(UsageError) as caught:
        pretrained.load("rnn", tmp_path / "bad.safetensors")
    assert says in str(caught.value)
    torch.save(reference("lstm").state_dict(), tmp_path / "pickle.pt")
    with pytest.raises(UsageError, match="safetensors"):
        pretrained.load("rnn", tmp_path / "pickle.pt")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in "ab":
        save_file(reference("lstm").state_dict(), tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match=r"'bias_hh_l0' in several files, one is b\.safetensors"):
        pretrained.find(models.build("rnn", head="none", inputs=I, width=H), tmp_path)


def test_a_leaf_that_others_have_no_name_for_is_refused(tmp_path: Path) -> None:
    """A head is no part of torch.nn.LSTM: it is neither dropped in silence nor made up."""
    model = models.build("rnn", head="classes", inputs=I, width=H)
    with pytest.raises(UsageError, match="no tensor for head/"):
        pretrained.save(model, random_variables(model), tmp_path / "ours.safetensors")
    with pytest.raises(UsageError, match="no tensor for head/"):
        pretrained.load("rnn", saved(reference("lstm"), tmp_path), head="classes")
