"""The mesh, and batches on it."""
