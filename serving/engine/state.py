"""What a supervisor is in and keeps to: its phase, its cadence, and the ledger of a start."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from policies.health import HealthLimits, RestartLimits
from serving.engine.metrics import Metrics
from serving.engine.source import Obtained

log = structlog.get_logger()


class Phase(StrEnum):
    """Where in its life the pod is."""

    FETCH = "fetch"
    VERIFY = "verify"
    LOAD = "load"
    WARM_UP = "warm_up"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class Status:
    """What people and probes are told."""

    phase: Phase
    detail: str = ""
    release_id: str = ""


@dataclass(frozen=True)
class Cadence:
    """How often and how patiently things are done that no setting governs."""

    watch_s: float = 1.0
    poll_s: float = 0.5
    registry_poll_s: float = 2.0
    settle_s: float = 1.0
    """From not ready until gateways have noticed: they look every 0.2 s, and name servers are slower."""
    stop_grace_s: float = 10.0
    """From asking the engine to end until its group is killed."""
    suspect_after_s: float = HealthLimits.suspect_after_s
    """An idle engine with a connection open this long, and no step, is asked a canary prompt."""
    restarts: RestartLimits = field(default_factory=RestartLimits)


@dataclass(frozen=True)
class Failure:
    """Why an engine's life ended: `exited`, `stalled`, `silent` or `canary`, and the particulars."""

    reason: str
    detail: str


def note_cold_start(metrics: Metrics, model: str, obtained: Obtained, canaries: str, load_s: float, warm_up_s: float) -> None:
    """The cold-start ledger: one line, and the same in metrics. After a restart nothing was fetched, and it says so."""
    fetched = obtained.fetched
    size_bytes = sum(file.size_bytes for file in fetched.manifest.files)
    metrics.phase_took("fetch", fetched.fetch_s)
    metrics.phase_took("verify", fetched.verify_s)
    metrics.phase_took("load", load_s)
    metrics.phase_took("warm_up", warm_up_s)
    metrics.fetch_bytes.set(fetched.fetched_bytes)
    log.info(
        "cold_start",
        model=model,
        release_id=obtained.release_id,
        canaries=canaries,
        fetch_s=round(fetched.fetch_s, 3),
        fetch_gb_per_s=_rate(fetched.fetched_bytes, fetched.fetch_s),
        verify_s=round(fetched.verify_s, 3),
        verify_gb_per_s=_rate(fetched.verified_bytes, fetched.verify_s),
        load_s=round(load_s, 3),
        load_gb_per_s=_rate(size_bytes, load_s),
        warm_up_s=round(warm_up_s, 3),
        total_s=round(fetched.fetch_s + fetched.verify_s + load_s + warm_up_s, 3),
    )


def _rate(num_bytes: int, seconds: float) -> float:
    """GB/s; 0 when nothing was moved."""
    return round(num_bytes / seconds / 1e9, 3) if num_bytes and seconds else 0.0
