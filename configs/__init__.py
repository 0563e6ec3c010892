"""What a run is made of: every knob in `base.py`, and a file of named configs for each family."""
