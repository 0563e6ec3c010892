"""Vision Transformers: patches are a convolution, sines and pools by hand, paths that are left out, what is refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from errors import UsageError
from models.blocks.vision.convolution import conv
from models.core.spec import unsharded
from models.families import vit
from tests.support.cases import random_variables, tiny_model


def image(model: models.Model, rows: int = 3) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(rows, *model.config.inputs)).astype(np.float32))


@pytest.mark.parametrize("patch", [4, (2, 3)])
def test_patches_are_a_convolution_of_their_own_stride(patch: Any) -> None:
    """The product over patches is what a convolution makes of it, row by row."""
    model = tiny_model("vit", patch=patch, position="patches", inputs=(8, 12, 3))
    c, x = model.config, image(model)
    p = random_variables(model)["params"]["embed"]
    dims = ("NHWC", "HWIO", "NHWC")

    @jax.jit
    def run(x: jax.Array, p: Any) -> Any:
        kernel = p["patch"]["kernel"]
        whole = jax.lax.conv_general_dilated(x, kernel, c.kernel, "VALID", dimension_numbers=dims)
        square = conv(x, kernel, "VALID", stride=patch) if isinstance(patch, int) else whole
        added = (p["patch"]["bias"][None] + p["position"])[None]
        return vit.embed(x, p, c, unsharded), *(y.reshape(3, -1, c.width) + added for y in (whole, square))

    got, want, square = run(x, p)
    np.testing.assert_allclose(got[:, 1:], want, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(got[:, 0], np.broadcast_to(p["class"], (3, c.width)))
    np.testing.assert_allclose(square, want, rtol=2e-5, atol=2e-5)


def test_sines_are_those_of_a_loop() -> None:
    """Column first, then row; the longest wavelength is 20000 pi."""
    got = vit.sines(2, 3, 8)
    want = np.zeros((6, 8))
    for y in range(2):
        for x in range(3):
            for i, turn in enumerate((1.0, 1e-4)):
                parts = math.sin(x * turn), math.cos(x * turn), math.sin(y * turn), math.cos(y * turn)
                want[3 * y + x, i::2] = parts
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_a_pool_is_the_first_token_or_the_mean_of_the_patches() -> None:
    """Of the vectors that the bare network returns; the mean is without the class token."""
    model = tiny_model("vit")
    variables, x = random_variables(model), image(model)
    fields = vars(model.config)
    bare = models.build("vit", **{**fields, "head": "none", "pool": "none"})
    first, mean = (models.build("vit", **{**fields, "pool": pool}) for pool in ("first", "mean"))
    run = jax.jit(lambda *given: [one.predict(*given) for one in (bare, first, mean)])
    vectors, *scores = (np.asarray(y) for y in run(variables, x))
    assert vectors.shape == (3, 2 * 3 + 1, 32)
    assert "encoder" in bare.traits
    head = variables["params"]["head"]
    for got, pooled in zip(scores, (vectors[:, 0], vectors[:, 1:].mean(1)), strict=True):
        np.testing.assert_allclose(got, pooled @ head["kernel"] + head["bias"][None], rtol=2e-5, atol=2e-5)


def test_a_head_of_zeros_predicts_nothing_at_first() -> None:
    model = tiny_model("vit", zero_head=True)
    value = jax.jit(lambda key, x: model.predict(model.init(key), x))(jax.random.key(0), image(model))
    assert not np.asarray(value).any()


def test_paths_are_left_out_more_often_further_up() -> None:
    """Of three layers at rate 0.6 the first's branches are never left out, the next's of 0.3 of the rows, then 0.6."""
    model = tiny_model("vit", drop_path=0.6, depth=3, head="none", pool="none", inputs=(4, 4, 1))
    variables, rows = random_variables(model), 2000
    x = np.broadcast_to(image(model, 1), (rows, *model.config.inputs))
    value = jax.jit(lambda v, x: model.apply(v, x, train=True, key=jax.random.key(2)).value)(variables, x)
    kinds, count = np.unique(np.round(np.asarray(value[:, 0, :4]), 4), axis=0, return_counts=True)
    assert len(kinds) == 16  # each of the last four branches in or out
    assert count.max() / rows == pytest.approx(0.7 * 0.7 * 0.6 * 0.6, abs=0.03)
    assert count.min() / rows == pytest.approx(0.3 * 0.3 * 0.4 * 0.4, abs=0.015)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(patch=225), "patch = 225 must be at most the image's 224 x 224"),
        (dict(patch=(16, 16, 16)), "one number or two"),
        (dict(patch=()), "patch = () must be one number or two"),
        (dict(inputs=()), "inputs = () must be three numbers"),
        (dict(inputs=(224, 224)), "three numbers"),
        (dict(class_token=False), "class_token = False must be True for pool='first'"),
        (dict(pool="none"), "pool = 'none' must be 'first' or 'mean' for head='classes'"),
        (dict(position="sines", width=6, heads=2), "multiple of 4"),
        (dict(position="sines", width=4, heads=2), "8 or more"),
        (dict(pool="none", head="none", norm="pooled"), "'tokens' for pool='none'"),
        (dict(layer_scale=0.0), "layer_scale = 0.0 must be positive"),
        (dict(heads=5), "a divisor of width=768"),
    ],
)
def test_what_is_no_vision_transformer_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        models.build("vit", **fields)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_image_of_another_size_is_refused() -> None:
    model = tiny_model("vit")
    with pytest.raises(UsageError, match=r"inputs = \(8, 12, 1\) must be \(8, 8, 1\), as the image is"):
        model.predict(random_variables(model), jnp.zeros((1, 8, 8, 1)))
