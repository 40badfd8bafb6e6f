"""What it costs: counted and measured."""
