"""Usage, from the first durable byte to the bill."""
