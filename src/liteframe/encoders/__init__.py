"""From pixels to video tokens, behind one interface."""
