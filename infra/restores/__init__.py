"""Backups, proved by restoring them: the ledger from its archive, the registry from a point in time, Pulumi's state from a
copy."""
