"""What the launcher's verbs do."""
