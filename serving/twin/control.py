"""The twin's own side: what really happened, and what is to go wrong.

GET  /twin/requests?since=N   records (`truth.Record`) with numbers from N on; of the ended ones the last 20,000
GET  /twin/state              the engine at this moment, and totals
GET  /twin/faults             the plan (`faults.FaultPlan`)
POST /twin/faults             a new plan; `{}` ends all faults
POST /twin/reset              forgets the prefix cache; 409 while a request runs
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from serving.twin.connection import Connection, Request
from serving.twin.faults import FaultPlan

if TYPE_CHECKING:
    from serving.twin.twin import Twin


def answer(twin: Twin, request: Request, connection: Connection) -> None:
    """Answer one of the twin's own paths."""
    status = 200
    document: Any = None
    match request.method, request.path:
        case "GET", "/twin/requests":
            document = list(twin.truth.records(_since(request)))
        case "GET", "/twin/state":
            document = state(twin)
        case "GET", "/twin/faults":
            document = twin.faults.plan
        case "POST", "/twin/faults":
            try:
                twin.set_faults(msgspec.json.decode(request.body, type=FaultPlan))
                document = twin.faults.plan
            except msgspec.MsgspecError as error:
                status, document = 400, {"error": str(error)}
        case "POST", "/twin/reset":
            status = 200 if twin.pool.clear() else 409
        case _:
            status = 404
    connection.respond(status, msgspec.json.encode(document))


def state(twin: Twin) -> dict[str, Any]:
    """The twin at this moment."""
    engine, pool, stats = twin.engine, twin.pool, twin.stats
    return {
        "pid": os.getpid(),
        "num_running": len(engine.running),
        "num_waiting": len(engine.waiting),
        "num_connections": len(twin.connections),
        "num_free_blocks": pool.num_free,
        "num_blocks": pool.num_blocks,
        "num_findable_blocks": pool.num_findable,
        "adapters": sorted(twin.adapters),
        "lora_slots": list(engine.lora_slots),
        "num_lora_loads": stats.num_lora_loads,
        "num_arrived": twin.truth.num_arrived,
        "num_preemptions": stats.num_preemptions,
        "prompt_tokens": stats.prompt_tokens,
        "generation_tokens": stats.generation_tokens,
        "cache_queries": stats.cache_queries,
        "cache_hits": stats.cache_hits,
    }


def _since(request: Request) -> int:
    value = parse_qs(request.query).get("since", ["0"])[0]
    return int(value) if value.isdigit() else 0
