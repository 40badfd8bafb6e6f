"""What a question about a video costs: counted, bounded and measured, stage by stage."""
