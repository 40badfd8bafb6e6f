"""One loop; what is learned in it."""
