"""From video tokens to words."""
