"""Every time limit of a workload's life, in one place, because they only make sense together.

Stopping a pod goes: preStop (still serving, while the cluster forgets its address), drain (finish what runs, take nothing new),
close (seal the journal, stop the engine), and after `grace_s` SIGKILL. A test holds the sum below the grace period for each
workload; engines drain no shorter than gateways, or a gateway's last streams would be cut from behind.
"""

from __future__ import annotations

from dataclasses import dataclass

SPOT_GRACE_S = 110
"""A spot node is gone two minutes after its notice; less ten seconds to act on it."""


@dataclass(frozen=True)
class Stop:
    """How a pod ends."""

    pre_stop_s: int
    drain_s: int
    close_s: int
    grace_s: int

    @property
    def longest_s(self) -> int:
        """Time that an orderly stop may take."""
        return self.pre_stop_s + self.drain_s + self.close_s


@dataclass(frozen=True)
class Probe:
    """A question that Kubernetes asks again and again."""

    path: str
    period_s: int
    timeout_s: int
    failures: int

    @property
    def notice_s(self) -> int:
        """Time after which a process that stopped answering is acted on, at most."""
        return self.period_s * self.failures + self.timeout_s


GATEWAY_STOP = Stop(pre_stop_s=2, drain_s=30, close_s=10, grace_s=60)
ENGINE_STOP = Stop(pre_stop_s=0, drain_s=30, close_s=15, grace_s=60)

STARTUP = Probe("/livez", period_s=1, timeout_s=3, failures=60)
"""Processes answer /livez within a second of their start, loaded or not; a loading engine is live and not ready."""
READINESS = Probe("/readyz", period_s=1, timeout_s=3, failures=2)
LIVENESS = Probe("/livez", period_s=5, timeout_s=3, failures=3)
