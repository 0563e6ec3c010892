"""Meshes from text, rules, and what they refuse."""

from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

from errors import UsageError
from models.core.spec import Spec, zeros
from train.sharding import mesh


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("dp:8", {"dp": 8}),
        ("dp:*", {"dp": 8}),
        ("tp:2,dp:4", {"dp": 4, "tp": 2}),
        (" tp : 2 , fsdp : * ", {"fsdp": 4, "tp": 2}),
        ("tp:*,cp:2,slice:2", {"slice": 2, "cp": 2, "tp": 2}),
        ("fsdp:8,tp:*", {"fsdp": 8, "tp": 1}),
    ],
)
def test_mesh_from_text(text: str, shape: dict[str, int]) -> None:
    """Axes in the order of AXES whatever the text's, * takes the rest, all devices once, Explicit."""
    got = mesh.make_mesh(text)
    assert dict(got.shape) == shape
    assert got.axis_names == tuple(a for a in mesh.AXES if a in shape)
    assert sorted(d.id for d in got.devices.flat) == list(range(8))
    assert set(got.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dpp:8", "did you mean 'dp'"),
        ("", "AXIS:SIZE of .*fsdp"),
        ("dp:8,", "AXIS:SIZE of .*fsdp"),
        ("dp:2,dp:4", "'dp' twice"),
        ("dp", "needs a size"),
        ("dp:0", "needs a size"),
        ("dp:-2", "needs a size"),
        ("dp:two", "needs a size"),
        ("dp:*,tp:*", "only one axis"),
        ("dp:4", "this run has 8"),
        ("dp:16", "this run has 8"),
        ("dp:3,tp:*", "this run has 8"),
    ],
)
def test_bad_meshes_are_refused(text: str, says: str) -> None:
    """Unknown and repeated axes, sizes that are no positive integers, products that are not the devices."""
    with pytest.raises(UsageError, match=says):
        mesh.make_mesh(text)


def spec(**dims: int) -> Spec:
    return Spec(tuple(dims.values()), " ".join(dims), zeros)


def test_names_become_partitions() -> None:
    """Each axis name gives its mesh axes, those the mesh lacks drop out, and one entry stays plain."""
    place = mesh.make_placement(mesh.make_mesh("dp:2,fsdp:2,tp:2"), {})
    assert place("batch seq width") == P(("dp", "fsdp"), None, None)
    assert place("layers embed mlp") == P(None, "fsdp", "tp")
    assert place.batch_shards == 4
    plain = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    assert plain("batch seq width") == P("dp", None, None)
    assert plain("embed mlp") == P(None, None)


def test_every_rule_uses_known_axes_once() -> None:
    """RULES maps to AXES only, and OR_REPLICATE names rules."""
    assert {a for over in mesh.RULES.values() for a in over} <= set(mesh.AXES)
    assert set(mesh.RULES) >= mesh.OR_REPLICATE


@pytest.mark.parametrize(("size", "fits"), [(6, "4 or 8"), (3, "4 would fit"), (9, "8 or 12")])
def test_a_dim_that_does_not_divide_is_refused(size: int, fits: str) -> None:
    """The error names the leaf, the dim, the mesh axes, and the sizes that fit."""
    with pytest.raises(UsageError, match=rf"blocks/up: its dim mlp = {size} .*tp:4.*{fits}"):
        mesh.make_placement(mesh.make_mesh("dp:2,tp:4"), {"blocks": {"up": spec(embed=5, mlp=size)}})


def test_small_dims_are_replicated_and_listed() -> None:
    """A name of OR_REPLICATE that does not divide is left whole everywhere, once in the list; others are cut."""
    specs = {"a": spec(embed=8, classes=8), "b": spec(embed=8, classes=10), "c": spec(embed=8, mlp=8)}
    place = mesh.make_placement(mesh.make_mesh("dp:2,tp:4"), {**specs, "d": spec(classes=3)})
    assert place.replicated_dims == ("classes 10",)
    assert place("embed classes") == P(None, None)
    assert place("embed mlp") == P(None, "tp")
    whole = mesh.make_placement(mesh.make_mesh("dp:2,tp:4"), {"a": specs["a"]})
    assert whole.replicated_dims == ()
    assert whole("embed classes") == P(None, "tp")


def test_rules_may_be_replaced() -> None:
    """Single entries, by text; None leaves the dim whole."""
    grid = mesh.make_mesh("fsdp:2,tp:4")
    assert mesh.make_placement(grid, {}, {"embed": "fsdp, tp"})("embed") == P(("fsdp", "tp"))
    assert mesh.make_placement(grid, {}, {"embed": None})("embed mlp") == P(None, "tp")
    assert mesh.make_placement(grid, {})("embed") == P("fsdp")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embd": "tp"}, "'embed'"),
        ({"embed": "tpp"}, "'tp'"),
        ({"embed": "tp,tp"}, "twice"),
        ({"embed": 2}, "embed.*2"),
    ],
)
def test_bad_rules_are_refused(changes: dict[str, Any], says: str) -> None:
    """Unknown names, unknown axes, an axis named twice, and what is no text."""
    with pytest.raises(UsageError, match=says):
        mesh.make_placement(mesh.make_mesh("tp:8"), {}, changes)


def test_a_mesh_axis_used_twice_is_refused() -> None:
    """Two dims of one array cannot lie on one mesh axis; the message names the dim to change."""
    place = mesh.make_placement(mesh.make_mesh("fsdp:4,tp:2"), {}, {"width": "tp"})
    assert place("batch width") == P("fsdp", "tp")
    with pytest.raises(UsageError, match=r"twice.*'heads'"):
        place("width heads")
    with pytest.raises(UsageError, match="twice"):
        place("batch embed")


def test_an_unknown_axis_name_is_refused() -> None:
    """In a call and in a table; nothing is silently replicated."""
    place = mesh.make_placement(mesh.make_mesh("dp:8"), {})
    with pytest.raises(UsageError, match=r"'widht'.*'width'"):
        place("batch widht")
    with pytest.raises(UsageError, match=r"axis name in a/b 'embd'.*'embed'"):
        mesh.make_placement(mesh.make_mesh("dp:8"), {"a": {"b": spec(embd=8)}})
