"""What several families share, by subject."""
