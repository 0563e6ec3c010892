"""The families, a file each."""
