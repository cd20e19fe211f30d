"""Nodes with GPUs, and what makes their GPUs usable and visible."""
