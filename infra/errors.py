"""The faults that people can make who write stack files or run commands of the program."""

from __future__ import annotations

from serving.errors import UserError

__all__ = ["ConfigError", "UserError"]


class ConfigError(UserError):
    """A stack's name, its file or the catalog is wrong. The message has one line a fault: file, key, value, expectation."""
