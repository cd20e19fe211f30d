"""Controllers that act on AWS or on workloads for us."""
