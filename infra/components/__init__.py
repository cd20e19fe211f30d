"""One component a file, one noun a component. Typed arguments in, typed properties out, children below it with its provider."""
