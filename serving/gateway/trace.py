"""W3C trace context (https://www.w3.org/TR/trace-context/, read 2026-11): a client's trace goes on through us to the engine.

    traceparent: 00-<trace id>-<parent id>-<flags>

The trace id is the client's and goes into our log line; the parent id that the engine gets is ours. Without a sound `traceparent`
nothing is passed: ids of a trace that nobody began help nobody, and our request id finds the line as well.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_STATE_BYTES = 512
"""What a `tracestate` must be allowed at least; a longer one is dropped, as the standard lets us."""
_PARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_STATE = re.compile(rb"[\x20-\x7e\t]*")


@dataclass(frozen=True)
class Trace:
    """The trace of a request."""

    id: str = ""
    """Empty where the client sent none."""
    lines: bytes = b""
    """Header lines for the engine, each with its line end."""


NO_TRACE = Trace()


def trace_of(headers: Mapping[bytes, bytes]) -> Trace:
    """The trace that a request belongs to, by its headers in lower case."""
    given = headers.get(b"traceparent")
    if given is None:
        return NO_TRACE
    found = _PARENT.fullmatch(given)
    if found is None or (found["more"] and given.startswith(b"00")):
        return NO_TRACE
    lines = b"traceparent: 00-%b-%b-%b\r\n" % (found["trace"], os.urandom(8).hex().encode(), found["flags"])
    state = headers.get(b"tracestate", b"")
    if state and len(state) <= MAX_STATE_BYTES and _STATE.fullmatch(state):
        lines += b"tracestate: %b\r\n" % state
    return Trace(found["trace"].decode(), lines)
