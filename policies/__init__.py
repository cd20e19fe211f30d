"""Decisions as pure functions: values in, a reasoned decision out, never I/O."""
