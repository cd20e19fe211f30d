"""How many engines a demand needs, from how long an engine's steps take."""
