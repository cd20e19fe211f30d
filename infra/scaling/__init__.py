"""Where the autoscaling policy meets the catalog, the price book and the command line."""
