"""What roles may do at most, and the roles of people."""
