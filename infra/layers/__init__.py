"""One module a layer: takes its configuration and earlier stacks' outputs, puts components together, exports its contract."""
