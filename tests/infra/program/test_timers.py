"""One coherent set of time limits: each inequality says which failure it prevents, and every manifest carries the numbers."""

from __future__ import annotations

from typing import Any

import pytest
from workload_support import LOCAL, PROD, SCALED_OBJECT, STAGING, document, named, pod, workloads

from infra import timers
from infra.components.workloads.fleets import Fleet, FleetKind
from infra.embedded.graph import Graph
from infra.timers import ALB_HEALTH, LIVENESS, READINESS, SPOT_GRACE_S, STARTUP
from policies.autoscaling.pace import Pace
from serving.gateway import exclusions
from serving.gateway.__main__ import KEEP_ALIVE_S
from serving.settings import EngineSettings, GatewaySettings, Timeouts

DEREGISTRATION_S = (0, 1, 60, 300)
STACKS = (LOCAL, STAGING, PROD)


def deregistration_s(graph: Graph) -> int:
    (group,) = graph.of_type("aws:lb/targetGroup:TargetGroup")
    return int(group.inputs["deregistrationDelay"])


@pytest.mark.parametrize("seconds", DEREGISTRATION_S)
def test_whoever_serves_outlives_whoever_sends_to_it(seconds: int) -> None:
    gateway = timers.gateway_stop(seconds)
    base, spot = timers.base_engine_stop(gateway), timers.spot_engine_stop(gateway)

    assert gateway.pre_stop_s > seconds, "else the load balancer sends to a gateway that has stopped listening"
    assert gateway.pre_stop_s - seconds >= timers.FORGET_S, "else the cluster does"
    assert base.drain_s >= gateway.pre_stop_s + gateway.drain_s, "else a gateway's last streams are cut from behind"
    assert base.longest_s < base.grace_s and gateway.longest_s < gateway.grace_s, "else an orderly stop is killed"
    assert max(base.grace_s, gateway.grace_s) < timers.NODE_TERMINATION_S, "else Karpenter takes the node from under a drain"
    assert spot.grace_s <= SPOT_GRACE_S < 120, "else AWS takes the node from under a spot engine"
    assert 0 < spot.drain_s <= base.drain_s


def test_a_long_deregistration_is_what_a_stream_has_to_finish_except_on_spot() -> None:
    """60 s: the load balancer may cut at 60; the gateway serves for 72 and drains for 30; a base engine drains for 102, a spot
    engine, whose node is gone after 120, for 85."""
    gateway = timers.gateway_stop(60)
    assert (gateway.pre_stop_s, gateway.drain_s, gateway.grace_s) == (72, 30, 132)
    assert timers.base_engine_stop(gateway).drain_s == 102
    assert timers.spot_engine_stop(gateway).drain_s == 85


def test_silence_is_allowed_longest_at_the_edge_and_shortest_at_the_engine() -> None:
    limits = Timeouts()
    assert limits.gap_s < limits.first_token_s < limits.request_s < timers.ALB_IDLE_S, "else the load balancer cuts, not we"
    assert timers.ALB_IDLE_S < KEEP_ALIVE_S, "else the load balancer sends on a connection that the gateway is closing"


def test_a_process_is_taken_out_of_service_before_it_is_killed() -> None:
    assert READINESS.notice_s < LIVENESS.notice_s
    assert READINESS.timeout_s < LIVENESS.period_s
    assert READINESS.notice_s < ALB_HEALTH.notice_s, "Kubernetes knows first; the load balancer's check is the second net"
    assert ALB_HEALTH.timeout_s < ALB_HEALTH.period_s
    assert STARTUP.period_s * STARTUP.failures >= 30


def test_a_drained_gateway_refuses_only_when_the_load_balancer_has_let_go_of_it() -> None:
    assert ALB_HEALTH.notice_s + exclusions.POLL_S < exclusions.REFUSE_AFTER_S


def test_a_fleet_shrinks_more_slowly_than_its_engines_come_back() -> None:
    pace = Pace()
    assert pace.up_window_s == 0 and pace.up_period_s < pace.down_period_s < pace.down_window_s
    assert pace.down_period_s / pace.pods_down > pace.up_period_s / pace.pods_up


@pytest.mark.parametrize("stack", STACKS)
def test_manifests_and_settings_carry_these_numbers(stack: str, graphs: dict[str, Graph]) -> None:
    graph = graphs[stack]
    gateway = timers.gateway_stop(deregistration_s(graph))
    found = workloads(graph)
    assert GatewaySettings.model_validate_json(document(graph, "gateway-settings")).drain_s == gateway.drain_s
    assert pod(found["gateway"])["terminationGracePeriodSeconds"] == gateway.grace_s
    for container in pod(found["gateway"])["containers"]:
        assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == gateway.pre_stop_s
    for name in found.keys() - {"gateway"}:
        kind = next((kind for kind in (FleetKind.OVERFLOW, FleetKind.BATCH) if name.endswith(f"-{kind}")), FleetKind.BASE)
        stop = Fleet("small", kind).stop(gateway)
        assert pod(found[name])["terminationGracePeriodSeconds"] == stop.grace_s
        assert EngineSettings.model_validate_json(document(graph, f"{name}-settings")).drain_s == stop.drain_s


def test_pools_wait_for_drains_and_scaling_for_its_pace(graphs: dict[str, Graph]) -> None:
    pools = named(graphs[PROD], "kubernetes:karpenter.sh/v1:NodePool")
    templates: list[dict[str, Any]] = [pool.inputs["spec"]["template"]["spec"] for pool in pools.values()]
    assert {template["terminationGracePeriod"] for template in templates} == {f"{timers.NODE_TERMINATION_S // 60}m"}
    scaled = [item.inputs["spec"] for item in named(graphs[PROD], SCALED_OBJECT).values()]
    assert len(scaled) == 7
    # Engines go by the leader's numbers, which have their pace already; only gateways have one of KEDA's.
    assert {item["scaleTargetRef"]["name"]: item["cooldownPeriod"] for item in scaled if item["cooldownPeriod"]} == {
        "gateway": Pace().down_window_s
    }
