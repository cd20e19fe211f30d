"""Faults that AWS itself makes for a drill."""
