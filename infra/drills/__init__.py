"""Drills that users run on their own machine: faults planted on purpose, and figures of what follows."""
