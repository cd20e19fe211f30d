"""Secrets that processes read at run time."""
