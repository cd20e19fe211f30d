"""Which serving image each region runs."""
