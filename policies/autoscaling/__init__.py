"""How many engines a class should have, minute by minute, and what comes of a rule over a day of load."""
