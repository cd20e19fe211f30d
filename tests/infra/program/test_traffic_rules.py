"""Who may talk to whom inside the region: nobody, then exactly these."""

from __future__ import annotations

from typing import Any

import pytest
from workload_support import LOCAL, NETWORK_POLICY, PROD, labels, named, workloads

from infra.embedded.graph import Graph

GATEWAYS = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "gateway"}}}]
KV_EVENTS = (5557, 5558)
"""Where an engine tells gateways what its prefix cache holds, and tells it again."""
PROMETHEUS = [
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    }
]


def policies(graph: Graph) -> dict[str, dict[str, Any]]:
    return {name: found.inputs["spec"] for name, found in named(graph, NETWORK_POLICY).items()}


def admitted(graph: Graph, pod_labels: dict[str, str]) -> list[tuple[Any, list[int]]]:
    """Every peer that may reach a pod with these labels, with the ports."""
    found: list[tuple[Any, list[int]]] = []
    for spec in policies(graph).values():
        if spec["podSelector"].get("matchLabels", {}).items() <= pod_labels.items():
            found += [(rule["from"], [port["port"] for port in rule["ports"]]) for rule in spec.get("ingress", [])]
    return sorted(found, key=str)


def test_nobody_may_talk_to_anybody_unless_a_policy_says_so(graphs: dict[str, Graph]) -> None:
    assert policies(graphs[PROD])["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


@pytest.mark.parametrize("stack", [LOCAL, PROD])
def test_an_engine_of_any_fleet_answers_to_gateways_and_prometheus_alone(stack: str, graphs: dict[str, Graph]) -> None:
    for name, workload in workloads(graphs[stack]).items():
        if name != "gateway":
            wanted = [(GATEWAYS, [8000, *KV_EVENTS]), (PROMETHEUS, [8000, 8001])]
            assert admitted(graphs[stack], labels(workload)) == sorted(wanted, key=str)


def test_a_gateway_answers_to_the_vpc_on_its_public_port_alone(graphs: dict[str, Graph]) -> None:
    vpc = [{"ipBlock": {"cidr": "10.16.0.0/16"}}]
    gateway = labels(workloads(graphs[PROD])["gateway"])
    assert admitted(graphs[PROD], gateway) == sorted([(vpc, [8080]), (PROMETHEUS, [8081, 8082])], key=str)


def test_no_pod_can_reach_the_metadata_service(graphs: dict[str, Graph]) -> None:
    """Node credentials are what an intruder asks for first."""
    opened = [
        (peer["ipBlock"], [port["port"] for port in rule["ports"]])
        for spec in policies(graphs[PROD]).values()
        for rule in spec.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert ({"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}, [443]) in opened
    link_local = [block for block in opened if block[0]["cidr"].startswith("169.254")]
    assert link_local == [({"cidr": "169.254.170.23/32"}, [80])], "Pod Identity's agent, and nothing beside it"
