"""What a twin answers where it refuses a request: vLLM's error document."""

from __future__ import annotations

import msgspec


class Refusal(Exception):
    """An answer that is an error document."""

    def __init__(self, status: int, message: str, param: str | None = None, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.kind = status, message, param, kind

    def document(self) -> bytes:
        """The document as vLLM writes it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return msgspec.json.encode({"error": error})
