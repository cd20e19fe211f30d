"""One component a file; each is a noun with typed arguments and typed outputs."""
