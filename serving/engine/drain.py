"""Waiting until an engine that gets no new requests has finished those it was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from serving.engine.client import CanaryError, EngineClient
from serving.engine.metrics import Metrics
from serving.engine.state import Cadence
from serving.models.manifest import Canary

log = structlog.get_logger()

_FENCE = Canary("fence", "", 1)
"""Any answer will do."""


async def await_idle(
    client: EngineClient, model: str, metrics: Metrics, cadence: Cadence, drain_s: float, has_ended: Callable[[], bool]
) -> int:
    """Requests that were still in the engine when `drain_s` was over or the engine ended; 0 if all finished.

    A request in its first step is in none of the engine's numbers. So a canary is asked first: when it is answered a step has
    ended, and the numbers have everything that was sent before it.
    """
    deadline_s = time.monotonic() + drain_s
    await asyncio.sleep(min(cadence.settle_s, drain_s))
    try:
        answer = await client.ask(model, _FENCE, max_tokens=1, timeout_s=max(deadline_s - time.monotonic(), cadence.poll_s))
        metrics.canary_asked(answer.input_tokens, answer.output_tokens)
    except CanaryError as error:
        log.warning("drain_fence_failed", model=model, detail=str(error))
    while True:
        sample = await client.sample(is_canary_out=False)
        is_idle = sample.has_answered and sample.num_requests == 0
        if is_idle or has_ended() or time.monotonic() > deadline_s:
            return sample.num_requests
        await asyncio.sleep(cadence.poll_s)
