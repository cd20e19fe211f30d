"""Looks after the engines of a gateway: do they answer, and do our requests there make progress?

Once a second every engine is asked for its health, which one whose whole process hangs does not answer; and every engine that
works for us is looked at for progress, which one whose core alone hangs does not make. What follows is the pool's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from policies.routing.suspicion import SILENT_S
from serving.gateway.dispatch import Dispatcher
from serving.gateway.route import Engine, Pool

log = structlog.get_logger()

PROBE_EVERY_S = 1.0
CHECK_EVERY_S = 0.25
_UNTIL_NEXT_S = 2 * (PROBE_EVERY_S + SILENT_S)
"""The next probe has failed by then if it fails: in between, the engine does not come back for a moment."""


async def watch_engines(pools: Sequence[Pool], dispatcher: Dispatcher) -> None:
    """Watch until cancelled."""
    loop = asyncio.get_running_loop()
    probing: dict[Engine, asyncio.Task[None]] = {}
    probe_s = loop.time()
    try:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for pool in pools:
                for engine in pool.check(loop.time()):
                    log.warning("engine_stalled", engine=engine.endpoint.name, in_flight=engine.replica.num_in_flight)
            if loop.time() < probe_s:
                continue
            probe_s = loop.time() + PROBE_EVERY_S
            for pool in pools:
                for engine in pool.engines:
                    if engine.endpoint.is_ready and engine not in probing:
                        task = probing[engine] = loop.create_task(_probe(engine, dispatcher))
                        task.add_done_callback(lambda _, engine=engine: probing.pop(engine))  # type: ignore[misc]
    finally:
        for task in list(probing.values()):
            task.cancel()


async def _probe(engine: Engine, dispatcher: Dispatcher) -> None:
    if not await dispatcher.is_well(engine.endpoint, SILENT_S):
        now_s = asyncio.get_running_loop().time()
        engine.eject(now_s, at_least_s=_UNTIL_NEXT_S)
        if now_s - engine.heard_s >= SILENT_S:
            engine.leave()
        log.warning("engine_silent", engine=engine.endpoint.name)
