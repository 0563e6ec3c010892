"""An update: losses, gradients, optimizers, learning rates."""
