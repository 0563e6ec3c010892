"""Values inside a forward pass: `Model.intermediates` and the `collect` behind it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import models
from errors import UsageError
from models.blocks.attention.attention import repeat_kv
from models.core.intermediates import collect, name_scope, sow
from tests.support import ROOT
from tests.support.cases import CASES, batch_for, random_variables, tiny_model

EARLY = ("mlp", "gpt", "deepseek", "rnn", "resnet")
OURS = [name if name in EARLY else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
DOCUMENTED = set(re.findall(r"^\| `(\w+)` \| \[", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE))


def inputs_for(name: str) -> dict[str, np.ndarray]:
    return {k: x[:4] for k, x in batch_for(name).items()}


def list_of(values: Any) -> list[np.ndarray]:
    return [np.asarray(x) for x in values]


def check_attention(found: dict[str, Any], prefix: str, sinks: bool) -> None:
    """The weights of each query sum to one, and less with sinks; with the values they give the output."""
    parts = (list_of(found[prefix + name]) for name in ("attention_weights", "values", "attention_output"))
    for weights, values, output in zip(*parts, strict=True):
        sums = weights.sum(-1)
        assert (sums < 1).all() if sinks else np.allclose(sums, 1, atol=1e-5)
        whole = repeat_kv(jnp.asarray(values), weights.shape[1])
        np.testing.assert_allclose(jnp.einsum("bnts,bsnh->btnh", weights, whole), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_every_family(name: str) -> None:
    """Collecting changes no output, and unrolled layers have the values of scanned ones; each name is documented."""
    model, variables, inputs = tiny_model(name), random_variables(tiny_model(name)), inputs_for(name)

    @jax.jit
    def collected(variables: Any, inputs: Any) -> tuple[Any, Any]:
        def run() -> None:
            for i, leaf in enumerate(jax.tree.leaves(model.predict(variables, inputs))):
                sow(f"output{i}", leaf)

        found = collect(run)
        return {k: found.pop(k)[0] for k in list(found) if k.startswith("output")}, found

    outputs, found = collected(variables, inputs)
    expected = jax.tree.leaves(jax.jit(model.predict)(variables, inputs))
    for got, want in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

    assert {n.rpartition("/")[2] for n in found} <= DOCUMENTED
    assert found or model.family == "flax"
    for prefix in {n.removesuffix("attention_output") for n in found if n.endswith("attention_output")}:
        check_attention(found, prefix, sinks=name == "gpt_oss")
    if "residual" in found:
        assert len(found["residual"]) == (getattr(model.config, "decoder_depth", None) or model.config.depth)
    if "scan" in {field.name for field in dataclasses.fields(model.config)}:
        unrolled = jax.jit(tiny_model(name, scan=False, remat="full").intermediates)(variables, inputs)
        assert unrolled.keys() == found.keys()
        for key, values in found.items():
            for one, other in zip(list_of(values), list_of(unrolled[key]), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt", {"residual", "attention_weights", "mlp_hidden"}),
        ("mixtral", {"residual", "attention_weights", "router_probs", "chosen_experts"}),
        ("transformer", {"residual", "attention_weights", "cross/attention_weights", "encoder/attention_weights"}),
        ("seq2seq", {"hidden", "cross/attention_weights", "encoder/hidden", "encoder/hidden_backward"}),
        ("rnn", {"hidden", "cell"}),
        ("vgg", {"feature_maps", "hidden"}),
    ],
)
def test_the_names_and_shapes_are_known_without_computing(name: str, expected: set[str]) -> None:
    model = tiny_model(name)
    shapes = jax.eval_shape(model.intermediates, random_variables(model), inputs_for(name))
    assert expected <= shapes.keys()


@pytest.mark.parametrize("name", ["gpt", "deepseek"])
def test_attention_weights_are_the_softmax_of_the_scores(name: str) -> None:
    """Of grouped heads or latents, with a causal mask; a backend without weights as an array does not matter."""
    model = tiny_model(name, **({"attention": "xla"} if name == "gpt" else {}))
    names = ["queries", "keys", "attention_weights"]
    found = jax.jit(lambda v, x: model.intermediates(v, x, names))(random_variables(model), inputs_for(name))
    assert list(found) == sorted(names)
    scores = jnp.einsum("lbtnh,lbsnh->lbnts", found["queries"], found["keys"]) * found["keys"].shape[-1] ** -0.5
    causal = jnp.where(jnp.tri(scores.shape[-1]) > 0, scores, -jnp.inf)
    np.testing.assert_allclose(found["attention_weights"], jax.nn.softmax(causal, -1), rtol=1e-4, atol=1e-6)


def test_the_transformations_of_jax_apply() -> None:
    """The last residual is what the head reads: its gradient and that over several seeds exist."""
    model = tiny_model("gpt")
    tokens = inputs_for("gpt")["tokens"]
    networks = jax.vmap(lambda seed: model.init(jax.random.key(seed)))(jnp.arange(2))

    def spread(variables: Any) -> jax.Array:
        return jnp.var(model.intermediates(variables, tokens, ["residual"])["residual"][-1])

    gradient = jax.jit(jax.vmap(jax.grad(spread)))(networks)["params"]
    assert np.any(gradient["blocks"]["qkv"]["kernel"])
    assert not np.any(gradient["norm"]["scale"])  # it comes after the blocks


def test_bad_names_and_inputs_are_refused() -> None:
    model = models.build("mlp", inputs=4, hidden=(8,))
    variables = random_variables(model)
    with pytest.raises(UsageError, match="unknown intermediate 'hiden'; those of this model: hidden"):
        model.intermediates(variables, np.zeros((1, 4)), ["hiden"])
    with pytest.raises(UsageError, match="names must be a list of names, as \\['hidden'\\], not a text"):
        model.intermediates(variables, np.zeros((1, 4)), "hidden")
    assert list(model.intermediates(variables, np.zeros((1, 4)), iter(["hidden"]))) == ["hidden"]
    with pytest.raises(UsageError, match="must be ids from 0 to 99"):
        tiny_model("gpt").intermediates(random_variables(tiny_model("gpt")), np.full((1, 4), 100))


def test_names_in_nested_calls_and_loops() -> None:
    """Values come in the order of computation, of an outer and an inner loop; those of a branch are left out."""

    @jax.custom_jvp
    def double(x: jax.Array) -> jax.Array:
        sow("doubled", x)
        return 2 * x

    double.defjvps(lambda t, _, x: 2 * t)

    def inner(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        sow("inner", x + i)
        return x, None

    def outer(x: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jax.checkpoint(lambda x: jax.lax.scan(inner, x, jnp.arange(2.0))[0])(x + 10 * i)
        with name_scope("wide"):
            sow("mixed", x)
            sow("mixed", jnp.stack([x, x]))
        jax.lax.cond(i > 0, lambda x: sow("branch", x), lambda x: None, x)
        return jax.jit(double)(x) / 2, x

    def run() -> None:
        sow("result", checkpoint_name(jax.lax.scan(outer, jnp.zeros(()), jnp.arange(2.0), reverse=True)[1], "theirs"))

    found = collect(run)
    assert sorted(found) == ["doubled", "inner", "result", "theirs", "wide/mixed"]
    np.testing.assert_array_equal(found["doubled"], [10, 10])  # a reversed loop has its last value first
    np.testing.assert_array_equal(found["inner"], [10, 11, 10, 11])
    np.testing.assert_array_equal(found["result"], [[10, 10]])
    assert [x.shape for x in found["wide/mixed"]] == [(), (2,), (), (2,)]


def test_a_flax_module_names_values_by_checkpoint_name(tmp_path: Path) -> None:
    (tmp_path / "named_module.py").write_text(
        "import flax.linen as nn\n"
        "from jax.ad_checkpoint import checkpoint_name\n"
        "class Net(nn.Module):\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        x = checkpoint_name(nn.relu(nn.Dense(5)(x)), 'activations')\n"
        "        return nn.Dense(3)(x)\n"
    )
    model = models.build("flax", module=f"{tmp_path}/named_module.py:Net", shape=(4,), classes=3)
    found = model.intermediates(model.init(jax.random.key(0)), {"features": np.ones((2, 4), np.float32)})
    assert found["activations"].shape == (1, 2, 5)
