"""Where the capacity policy meets the catalog, the price book and the command line."""
