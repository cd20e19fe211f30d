"""Tables that must survive a region."""
