"""A vLLM twin: what a client sees of vLLM, with ground truth beside it and faults on command; no weights and no GPU."""
