"""Initial values: functions of the key, the path and the leaf's Spec, on any mesh."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from models.core.spec import Spec, flatten, initialize, unflatten
from tests.support.cases import CASES, MESHES, hardest, tiny_model
from train.sharding.mesh import make_mesh, make_placement


def leaves_of_each_kind() -> dict[str, Spec]:
    """A leaf of each initializer with each combination of axes, out of all cases: the one with most even dims."""
    kinds: dict[Any, tuple[str, Spec]] = {}
    for name in sorted(CASES):
        for path, spec in flatten(tiny_model(name).specs).items():
            kind = getattr(spec.init, "__qualname__", type(spec.init).__name__), spec.names
            if kind not in kinds or even_dims(spec) > even_dims(kinds[kind][1]):
                kinds[kind] = f"{name}/{path}", spec
    return dict(kinds.values())


def even_dims(spec: Spec) -> int:
    return sum(size % 2 == 0 for size in spec.shape)


def assert_drawn_by_key_and_path(specs: Any, mesh_text: str) -> None:
    """Equal on one device and on a mesh, but for the last bit, which compilation without fusion changes."""
    place = make_placement(make_mesh(mesh_text), specs)
    one = jax.jit(partial(initialize, specs))(jax.random.key(0))
    with jax.set_mesh(place.mesh):
        init = jax.jit(partial(initialize, specs), out_shardings=place.shardings(specs))
        same, other = (init(jax.random.key(k)) for k in (0, 1))
    one, same, other = (flatten(jax.device_get(x)) for x in (one, same, other))
    for path, values in one.items():
        np.testing.assert_allclose(same[path], values, rtol=1e-6, atol=1e-7)
    assert any((one[path] != other[path]).any() for path in one)


@pytest.mark.parametrize(
    "mesh_text", ["fsdp:2,ep:2,tp:2", *(pytest.param(m, marks=pytest.mark.weekly) for m in ("dp:2,ep:2,cp:2", *MESHES))]
)
def test_initial_values_of_each_kind_are_equal_on_any_mesh(mesh_text: str) -> None:
    """One function draws the values of all families, leaf by leaf; test_invariance compares all bits."""
    specs = leaves_of_each_kind()
    assert len(specs) > 60
    assert_drawn_by_key_and_path(unflatten(specs), mesh_text)


@pytest.mark.parametrize(
    "name", [name if name == "mlp" else pytest.param(name, marks=pytest.mark.weekly) for name in sorted(CASES)]
)
def test_initial_values_are_determined_by_key_and_path(name: str) -> None:
    assert_drawn_by_key_and_path(tiny_model(name).specs, hardest(name))


def test_a_layer_more_leaves_the_others_bit_identical() -> None:
    key = jax.random.key(3)
    few, more = (flatten(tiny_model("gpt", depth=d, tied=d == 2).init(key)["params"]) for d in (2, 3))
    assert set(few) < set(more)
    for name, values in few.items():
        if "/out/" in name or "/down/" in name:
            continue  # their deviation is 0.02 / sqrt(2 L): another depth is another law
        np.testing.assert_array_equal(more[name][:2] if name.startswith("blocks") else more[name], values)
