"""Gradients by hand: backpropagation of an MLP, and scalar automatic differentiation."""
