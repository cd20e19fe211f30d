"""One gateway of a region says how many engines each class should have; everything that changes their number reads it."""
