"""The platform for which a function is traced."""

import jax


def compile_platform() -> str:
    """cpu, gpu or tpu: the platform of the mesh compiled for, which may not be ours, else that of jax."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def on_one_cpu_device() -> bool:
    """Whether the function that is traced will run on a single device, a CPU."""
    mesh = jax.sharding.get_abstract_mesh()
    return compile_platform() == "cpu" and (mesh.empty or mesh.size == 1)
