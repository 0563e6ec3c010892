"""Attention: backends, masks and rotary positions."""
