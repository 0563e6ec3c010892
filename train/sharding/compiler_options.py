"""Options of XLA for the programs of a run."""

from jax.sharding import Mesh

# Convolutions go to Eigen: YNNPACK, XLA's default, computes many shapes on one core (docs/decisions/0039).
CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for `jax.jit` of a program on a mesh; none but on CPU."""
    return CPU if mesh.devices.flat[0].platform == "cpu" else {}
