"""Every time limit of a workload's life, in one place, because they only make sense together.

Stopping a pod goes: preStop (still serving, while load balancer and cluster forget its address), drain (finish what runs, take
nothing new), close (seal and ship the journal, stop the engine), and after `grace_s` SIGKILL. What must hold between them is
tested in tests/infra/program/test_timers.py; a number that another follows from is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

SPOT_GRACE_S = 110
"""A spot node is gone two minutes after its notice; less ten seconds to act on it."""
NODE_TERMINATION_S = 45 * 60
"""Karpenter's patience with a node's pods. Longer than any pod's grace: a base engine waits here for its budget's turn."""

ALB_IDLE_S = 620
"""Silence after which the load balancer cuts a connection. A plain, unstreamed answer is silent until it is whole, so this is
longer than any request may take (`Timeouts.request_s`), and shorter than gateways keep an idle connection."""

FORGET_S = 2
"""Endpoints and DNS of the cluster forget a pod that is stopping within this."""
DEREGISTER_S = 10
"""Between a pod's end and the load balancer being told. Assumed: the controller takes a second or two, unless it is busy."""
GATEWAY_DRAIN_S = 30
GATEWAY_CLOSE_S = 20
"""For the journal to be sealed and its last segments shipped."""
ENGINE_CLOSE_S = 15
SLACK_S = 10
"""Between the end of an orderly stop and SIGKILL."""


@dataclass(frozen=True)
class Stop:
    """How a pod ends."""

    pre_stop_s: int
    drain_s: int
    close_s: int

    @property
    def longest_s(self) -> int:
        """Time that an orderly stop may take."""
        return self.pre_stop_s + self.drain_s + self.close_s

    @property
    def grace_s(self) -> int:
        """Time after which the pod is killed."""
        return self.longest_s + SLACK_S


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


def gateway_stop(deregistration_s: int) -> Stop:
    """How a gateway ends behind a load balancer that takes `deregistration_s` to let go of it; 0 is none, as in `local`.

    The load balancer sends it nothing new from the first of these seconds, and cuts what still runs after the last. A gateway
    that stopped serving before would answer with resets. So preStop outlasts it, and streams have this long to finish; the
    drain is for those who came another way.
    """
    return Stop(
        pre_stop_s=FORGET_S + (DEREGISTER_S + deregistration_s if deregistration_s else 0),
        drain_s=GATEWAY_DRAIN_S,
        close_s=GATEWAY_CLOSE_S,
    )


def base_engine_stop(gateway: Stop) -> Stop:
    """How an engine ends whose node waits. Gateways may be stopping too, so it drains as long as they serve: else their last
    streams would be cut from behind."""
    return Stop(pre_stop_s=0, drain_s=gateway.pre_stop_s + gateway.drain_s, close_s=ENGINE_CLOSE_S)


def spot_engine_stop(gateway: Stop) -> Stop:
    """The same where the node waits for nobody: streams that take longer are lost."""
    base = base_engine_stop(gateway)
    return Stop(pre_stop_s=0, drain_s=min(base.drain_s, SPOT_GRACE_S - SLACK_S - ENGINE_CLOSE_S), close_s=ENGINE_CLOSE_S)


STARTUP = Probe("/livez", period_s=1, timeout_s=3, failures=60)
"""Processes answer /livez within a second of their start, loaded or not; a loading engine is live and not ready."""
READINESS = Probe("/readyz", period_s=1, timeout_s=3, failures=2)
LIVENESS = Probe("/livez", period_s=5, timeout_s=3, failures=3)
ALB_HEALTH = Probe("/health", period_s=10, timeout_s=5, failures=3)
"""The load balancer's own, a gateway's view of whether traffic should come. Slower than readiness, by which Kubernetes takes a
gateway out: it is for what Kubernetes cannot see, such as a broken path between load balancer and pod."""
