"""Side-by-side measurements against the usual alternatives; results as JSON under results/."""
