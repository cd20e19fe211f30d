"""What a stack costs: dated prices, a count of what is bought, and an honest list of what neither tells."""
