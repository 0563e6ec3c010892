"""Text and translations from a model."""
