"""The API edge: one path from an HTTP request to a settled bill, in modules named by its steps.

    auth → validate → models → context → limits → route → dispatch → stream → settle

`pipeline.py` walks it; read that first.
"""
