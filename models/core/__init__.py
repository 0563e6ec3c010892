"""Specs of parameters, layers, and checks of configs: what every family imports."""
