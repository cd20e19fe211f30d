"""What of a conversation a model is shown where not all of it fits its window."""
