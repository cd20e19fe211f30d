"""What tokens cost a tenant, and what is written on its invoice."""
