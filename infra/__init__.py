"""The Pulumi program that describes a region, and what else realises it."""
