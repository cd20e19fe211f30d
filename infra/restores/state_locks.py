"""Locks on Pulumi's state: whether one still stands for somebody who works, or was left behind.

A backend of one's own locks a stack by an object at `.pulumi/locks/<stack>/<id>.json`, which says who made it; an update that is
killed leaves it, and every later one refuses. `pulumi cancel` deletes them all, whoever holds them: that breaks a colleague's
update in the middle. Here a lock is deleted only where it is known to be left behind. UNSURE leaves it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

MAX_UPDATE = timedelta(hours=6)
"""No update lasts longer: GitHub ends a job after six hours (its documentation, "Usage limits")."""
QUIET = timedelta(minutes=30)
"""The engine writes the checkpoint after each step; EKS clusters and node groups, the slowest, take less."""


class Verdict(StrEnum):
    """What a lock stands for."""

    HELD = "held"
    STALE = "stale"
    UNSURE = "unsure"


@dataclass(frozen=True)
class Lock:
    """Who locked a stack, as the lock says."""

    key: str
    username: str = ""
    hostname: str = ""
    pid: int = 0
    at: datetime | None = None
    """None where the lock cannot be read."""


@dataclass(frozen=True)
class LockDecision:
    """Whether a lock may go, and why."""

    lock: Lock
    verdict: Verdict
    reason: str


def parse_lock(key: str, data: bytes) -> Lock:
    """The lock at `key`; one that cannot be read says nothing of its holder."""
    try:
        found: Any = json.loads(data)
        stamp = str(found["timestamp"]).replace("Z", "+00:00")
        head, dot, rest = stamp.partition(".")  # Go writes nanoseconds, of which Python reads six digits
        zone = next((rest[place:] for place, char in enumerate(rest) if char in "+-"), "")
        at = datetime.fromisoformat(head + zone if dot else stamp)
        return Lock(key, str(found["username"]), str(found["hostname"]), int(found["pid"]), at)
    except (ValueError, KeyError, TypeError):
        return Lock(key)


def decide_lock(lock: Lock, now: datetime, *, hostname: str, is_alive: bool, written_at: datetime | None) -> LockDecision:
    """Whether `lock` is stale at `now`. `hostname` is this machine; `is_alive`, whether `lock.pid` runs on it; `written_at`,
    when the stack's checkpoint was last written (None: never)."""

    def decided(verdict: Verdict, reason: str) -> LockDecision:
        return LockDecision(lock, verdict, reason)

    if lock.at is None:
        return decided(Verdict.UNSURE, "it cannot be read")
    if written_at is not None and written_at > lock.at and now - written_at < QUIET:
        return decided(Verdict.HELD, f"the checkpoint was written {_ago(now - written_at)} ago")
    if lock.hostname == hostname:
        if is_alive:
            return decided(Verdict.HELD, f"process {lock.pid} runs on this machine")
        return decided(Verdict.STALE, f"process {lock.pid} of this machine has ended")
    if now - lock.at > MAX_UPDATE:
        return decided(Verdict.STALE, f"it is {_ago(now - lock.at)} old, and no update lasts {_ago(MAX_UPDATE)}")
    return decided(Verdict.UNSURE, f"{lock.hostname} made it {_ago(now - lock.at)} ago and may be at work")


def _ago(span: timedelta) -> str:
    """`2 h 5 min` for 125 minutes."""
    minutes = int(span.total_seconds() // 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
