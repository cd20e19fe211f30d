"""What every process of the image does alike: its log, its servers' manners, and how it refuses to start."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import msgspec
import structlog
import uvicorn


class Server(uvicorn.Server):
    """Leaves signals to its process, which has an order to stop in: uvicorn alone would stop answering probes at SIGTERM."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def configure_logs() -> None:
    """One JSON object a line on stdout."""
    encoder = msgspec.json.Encoder(enc_hook=repr)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(serializer=lambda line, **_: encoder.encode(line)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.BytesLoggerFactory(),
        cache_logger_on_first_use=True,
    )


def refuse(role: str, message: str) -> int:
    """Tell whoever starts the process why it cannot do its work; the exit code for that."""
    print(f"{role}: {message}", file=sys.stderr)  # noqa: T201 (the process's one word to whoever starts it)
    return 2
