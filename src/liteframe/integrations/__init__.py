"""Ways for other programs to use the pipeline; each needs an optional extra of its own."""
