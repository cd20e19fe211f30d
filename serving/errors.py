"""The one exception that a person at a terminal may see: a sentence that says what is wrong and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The command line prints `message`, then `hint`, and exits 2; nothing has been lost."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
