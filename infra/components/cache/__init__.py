"""What may be lost: limits and shared state of a region."""
