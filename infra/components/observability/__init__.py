"""What measures a region."""
