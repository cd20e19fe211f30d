"""One module a stack layer: foundation, cluster, serving, edge."""
