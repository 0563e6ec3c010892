"""The run: mesh, state, losses, step, loop, optimizers, checkpoints, evaluation, metrics, sampling."""
