"""The API edge."""
