"""Digests of arrays: the same by numpy and by a program."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import checkpoint

MODULE = sys.modules[checkpoint.digests.__module__]  # the package has a function of the same name

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "uint8", "bool")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 4, 5), (0, 2)])
def test_the_host_sums_what_a_program_sums(dtype: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Old checkpoints, whose digests programs have computed, stay valid."""
    values = np.random.default_rng(0).normal(size=shape) * 50
    leaf = jnp.asarray(values.astype("int32") if "int" in dtype else values).astype(dtype)
    host = checkpoint.digests({"x": leaf})
    monkeypatch.setattr(MODULE, "HOST_SIZE", -1)
    assert checkpoint.digests({"x": leaf}) == host


def test_a_digest_is_what_it_was() -> None:
    """Of the numbers 0 to 5: a checkpoint of an earlier version holds this."""
    assert checkpoint.digests({"x": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}) == {"x": "3ad1577340da70a9"}


def test_small_arrays_compile_no_program_and_can_be_donated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_replicated_digest", None)
    leaf = jnp.arange(8.0)
    checkpoint.digests({"x": leaf})
    moved = jax.jit(lambda x: x + 1, donate_argnums=0)(leaf)
    assert leaf.is_deleted()
    np.testing.assert_array_equal(moved, np.arange(1.0, 9.0))
