"""Strict surroundings for every test: 8 simulated CPU devices, rank promotion raises, shapes in signatures are checked."""

import jax
import jaxtyping

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook(["models", "train"], "beartype.beartype")

import logging  # noqa: E402

logging.getLogger("absl").setLevel(logging.ERROR)

