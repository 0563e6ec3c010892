"""File formats of published parameters."""
