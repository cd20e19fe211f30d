"""The faults that a person writing stack files can make."""

from __future__ import annotations

from serving.errors import UserError


class ConfigError(UserError):
    """A stack's name, its file or the catalog is wrong. The message has one line a fault: file, key, value, expectation."""
