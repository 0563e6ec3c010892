"""Strict surroundings: 8 simulated CPU devices, rank promotion raises, shapes in signatures are checked."""

import os

# LLVM's optimisation passes take three quarters of a test's time here and change no law; the slow suite, which starts
# `launch.py` in processes of its own, runs without this flag.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import jax
import jaxtyping

import tests.typecheck  # noqa: F401  (the import hook finds it by name)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook(["models", "train"], "tests.typecheck.check")

import logging  # noqa: E402

logging.getLogger("absl").setLevel(logging.ERROR)

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def no_mesh():
    """The mesh that a run sets for its process does not outlive the test."""
    yield
    jax.set_mesh(None)
