"""Figures of runs and evaluations."""
