"""Video in: what a file is, where to look, and the frames that were shown there."""
