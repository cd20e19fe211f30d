"""Alarms on the bill."""
