"""Right or wrong, counted."""
