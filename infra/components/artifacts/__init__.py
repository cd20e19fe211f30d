"""Buckets and what replicates them."""
