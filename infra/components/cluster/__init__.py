"""Kubernetes, and who its pods are to AWS."""
