"""One request's way through the gateway, for its log line and its metrics. Never a word of what was said, and no key."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

import structlog

from policies.routing.model_choice import ModelChoice
from serving.gateway import errors
from serving.gateway.compaction import Compacted
from serving.gateway.conversations import StoredTurn
from serving.gateway.errors import ApiError
from serving.gateway.exchange import Exchange
from serving.gateway.metrics import NO_MODEL, Metrics
from serving.gateway.route import Seat
from serving.gateway.settle import Meter
from serving.gateway.trace import NO_TRACE, Trace
from serving.gateway.validate import Endpoint

log = structlog.get_logger()

CLIENT_GONE_STATUS = 499
"""In metrics and logs only: nobody was there to answer."""

_FOR_WANT_OF_ENGINES = frozenset({errors.OVERLOADED.code, errors.ENGINE_UNAVAILABLE.code})


def mint_request_id() -> str:
    """An id of our own for a request, such as `req_0a1b…`."""
    return f"req_{os.urandom(12).hex()}"


@dataclass
class Call:
    """What is known of a request so far. The id is ours, never the client's."""

    endpoint: Endpoint
    trace: Trace = NO_TRACE
    request_id: str = field(default_factory=mint_request_id)
    model: str = NO_MODEL
    tenant: str = ""
    key_id: str = ""
    status: int = 200
    error: str = ""
    seat: Seat | None = None
    """The place at the engine that was asked last."""
    claim: str = ""
    event_id: str = ""
    """The claim on its idempotency key, and the event that was named in it; empty where it came without a key."""
    choice: ModelChoice | None = None
    """How its class was chosen, where it asked for `auto`."""
    compacted: Compacted | None = None
    """What of its conversation was dropped; None where all of it was kept."""
    summary_for: str = ""
    """The event whose conversation this one summarises; empty for all that clients ask."""
    prompt: str = ""
    """The version of the registered prompt that stands before it; empty where it named none."""
    turn: StoredTurn | None = None
    """Of the stored conversation that it goes on with."""
    meter: Meter | None = None
    """There from the moment that the request is about to be paid for."""

    def failed(self, error: ApiError) -> None:
        """The request was answered with `error`."""
        self.status, self.error = error.kind.status, error.kind.code

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that an engine computed for it; 0 where none answered."""
        return 0 if self.meter is None else self.meter.prompt_tokens - self.meter.cached_tokens

    @property
    def output_tokens(self) -> int:
        """What was generated."""
        return 0 if self.meter is None else self.meter.output_tokens


def record(call: Call, exchange: Exchange, metrics: Metrics) -> None:
    """The request is over: count it and write its one line."""
    meter = call.meter
    duration_s = asyncio.get_running_loop().time() - exchange.received_s
    metrics.requests.labels(call.model, call.endpoint, str(call.status)).inc()
    if call.error:
        metrics.errors.labels(call.model, call.error).inc()
        if call.error in _FOR_WANT_OF_ENGINES:
            metrics.first_tokens.refused(call.model)
    if meter is not None:
        metrics.request_seconds.labels(call.model).observe(duration_s)
        if meter.first_sent_s is not None:
            ttft_s = meter.first_sent_s - exchange.received_s
            metrics.ttft.labels(call.model).observe(ttft_s)
            metrics.first_tokens.came(call.model, ttft_s)
        if meter.tpot_s is not None:
            metrics.tpot.labels(call.model).observe(meter.tpot_s)
    log.info(
        "request",
        request_id=call.request_id,
        trace_id=call.trace.id,
        event_id="" if meter is None else meter.opened.event_id,
        tenant=call.tenant,
        key_id=call.key_id,
        endpoint=call.endpoint,
        model=call.model,
        model_reason="" if call.choice is None else call.choice.reason,
        engine="" if call.seat is None else call.seat.engine.endpoint.name,
        status=call.status,
        error=call.error,
        prompt_tokens=0 if meter is None else meter.prompt_tokens,
        output_tokens=0 if meter is None else meter.output_tokens,
        attempts=0 if meter is None else meter.attempts,
        ms=round(duration_s * 1e3, 1),
    )
