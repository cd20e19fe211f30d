"""One HTTP request and its answer, as the pipeline sees them: the seam between the path and its transport.

The pipeline knows no ASGI and no socket. `client_http.py` makes exchanges of a client's connection itself, `asgi.py` makes them
of ASGI messages for the routes that FastAPI declares; nothing else knows which of the two it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

Headers = Sequence[tuple[bytes, bytes]]

BODY_TIMEOUT_S = 30.0
MAX_DISCARDED_BYTES = 64 * 1024 * 1024
"""Of a body that is too large so much is read and thrown away, so that the client hears why before its connection closes."""


class ClientGone(Exception):
    """The client has hung up: nobody is there to answer."""


class BodyTooLarge(Exception):
    """The body is larger than was allowed; what came of it has been thrown away."""


class BodyBroken(Exception):
    """What came after the head cannot be understood as a body."""


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
    on_disconnect: Callable[[], None] | None
    """Called once, on the event loop, when the client hangs up before the end."""

    @property
    def is_disconnected(self) -> bool:
        """The client has hung up."""

    @property
    def is_full(self) -> bool:
        """More has been written than the client takes at the moment: `drain` before the next `write`."""

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body, never holding more than `max_bytes` of it.

        Raises:
            BodyTooLarge, BodyTooSlow, BodyBroken, ClientGone: as they say.
        """

    def start(self, status: int, headers: Headers) -> None:
        """Begin the answer: status line and headers go out with its first piece. A `content-length` among them fixes the body's
        length."""

    def write(self, data: bytes) -> None:
        """Send a piece of the body. Never waits, and is in vain when the client has hung up."""

    async def drain(self) -> None:
        """Return when the transport will take more, which is how a slow reader slows its engine.

        Raises:
            ClientGone: the client has hung up.
        """

    async def finish(self, data: bytes = b"") -> None:
        """Send the last piece of the body and end the answer.

        Raises:
            ClientGone: the client has hung up.
        """
