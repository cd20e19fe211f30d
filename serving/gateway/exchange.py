"""One HTTP request and its answer, as the pipeline sees them: the seam between the path and its transport.

The pipeline knows no ASGI and no socket. `asgi.py` adapts uvicorn's ASGI; a protocol-level transport is a second class with these
members, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client has hung up: nobody is there to answer."""


class BodyTooLarge(Exception):
    """The body is larger than was allowed; what came of it has been thrown away."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


class Exchange(Protocol):
    """What a transport offers for one request."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    """By lower-case name; of a repeated header the last value."""
    headers_bytes: int
    """Size of all headers as they came."""
    received_s: float
    """Event-loop time at which the last byte of the request was there; TTFT counts from it."""
    is_disconnected: bool
    """The client has hung up."""
    on_disconnect: Callable[[], None] | None
    """Called once, on the event loop, when the client hangs up before the end."""

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body, never holding more than `max_bytes` of it.

        Raises:
            BodyTooLarge, BodyTooSlow, ClientGone: as they say.
        """

    async def start(self, status: int, headers: Headers) -> None:
        """Send the status line and headers. A `content-length` among them fixes the body's length."""

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; returns when the transport will take more, which is how a slow reader slows its engine.

        Raises:
            ClientGone: the client has hung up.
        """

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body and end the answer.

        Raises:
            ClientGone: the client has hung up.
        """
