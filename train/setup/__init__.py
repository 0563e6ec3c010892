"""What a run is made of: checks, inputs, model, and settings of a published network."""
