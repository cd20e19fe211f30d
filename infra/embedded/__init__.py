"""Running the program without the Pulumi CLI: recorder, graph, diff, realiser."""
