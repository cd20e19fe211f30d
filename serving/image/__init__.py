"""How the serving image is made: a tool of the repository, no part of what the image holds."""
