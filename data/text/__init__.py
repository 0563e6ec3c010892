"""Texts: tokenizers, and rows of tokens."""
