"""What a region that is lost, or said to be, means for the others."""
