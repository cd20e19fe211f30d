"""Who may talk to whom: nobody, then exactly these.

Nobody reaches the gateways' admin port over the network: operators forward it through the cluster's API, which asks who they are.
An engine runs other people's prompts, and vLLM's own security guide leaves most of its routes open: so its port answers to
gateways alone, and it can reach nothing but DNS, AWS and its credentials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pulumi
from pulumi_kubernetes.networking import v1 as networking

from infra.catalog import KV_EVENTS_PORT, KV_REPLAY_PORT
from infra.components.component import Component
from infra.components.workloads import engine_fleet, gateway_fleet, pods
from infra.naming import ENGINE, GATEWAY, MONITORING, PROJECT, StackName

POD_IDENTITY_AGENT = "169.254.170.23/32"
"""Where EKS Pod Identity gives pods their credentials (AWS documentation, read November 2026)."""
LINK_LOCAL = "169.254.0.0/16"
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
"""Labels that the operator gives the server's pods."""

Peer = networking.NetworkPolicyPeerArgsDict
Port = networking.NetworkPolicyPortArgsDict
Direction = Literal["Ingress", "Egress"]


def _tcp(*ports: int) -> list[Port]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def _pods_of(namespace: str, labels: dict[str, str]) -> Peer:
    return {
        "namespace_selector": {"match_labels": {"kubernetes.io/metadata.name": namespace}},
        "pod_selector": {"match_labels": labels},
    }


GATEWAYS = pods.selector(GATEWAY)
ENGINES = {f"{PROJECT}.dev/component": ENGINE}


class TrafficRules(Component):
    """The network policies of the serving namespace."""

    def __init__(
        self,
        name: str,
        vpc_cidr: pulumi.Input[str],
        cache_port: int,
        stack: StackName,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("workloads:TrafficRules", name, stack, opts)
        self._labels = pods.labels(stack, name, name)
        inside: Peer = {"ip_block": {"cidr": vpc_cidr}}
        outside: Peer = {"ip_block": {"cidr": "0.0.0.0/0", "except_": [LINK_LOCAL]}}
        prometheus = _pods_of(MONITORING, PROMETHEUS)
        self._create("default-deny", {}, "Ingress", [], also="Egress")
        self._create(
            "dns",
            {},
            "Egress",
            [
                (
                    [_pods_of("kube-system", {"k8s-app": "kube-dns"})],
                    [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
                )
            ],
        )
        # AWS's addresses are not ours to list; the endpoint policies and the pods' roles say what may be done there. Gateways
        # reach the Kubernetes API through it too, at the addresses behind its Service.
        self._create("aws", {}, "Egress", [([outside], _tcp(443)), ([{"ip_block": {"cidr": POD_IDENTITY_AGENT}}], _tcp(80))])
        self._create("clients-to-gateway", GATEWAYS, "Ingress", [([inside], _tcp(gateway_fleet.HTTP_PORT))])
        self._create(
            "monitoring-to-gateway",
            GATEWAYS,
            "Ingress",
            [([prometheus], _tcp(gateway_fleet.OPS_PORT, gateway_fleet.SHIPPER_PORT))],
        )
        # vLLM's own numbers, by which fleets grow, are on the port that takes requests: so Prometheus alone, not its namespace.
        engine_ports = _tcp(engine_fleet.HTTP_PORT, engine_fleet.OPS_PORT)
        self._create("monitoring-to-engine", ENGINES, "Ingress", [([prometheus], engine_ports)])
        engine_port = _tcp(engine_fleet.HTTP_PORT, KV_EVENTS_PORT, KV_REPLAY_PORT)
        self._create("gateway-to-engine", GATEWAYS, "Egress", [([{"pod_selector": {"match_labels": ENGINES}}], engine_port)])
        self._create("engine-from-gateway", ENGINES, "Ingress", [([{"pod_selector": {"match_labels": GATEWAYS}}], engine_port)])
        self._create("gateway-to-cache", GATEWAYS, "Egress", [([inside], _tcp(cache_port))])
        self.register_outputs({})

    def _create(
        self,
        what: str,
        pod_labels: dict[str, str],
        direction: Direction,
        rules: Sequence[tuple[list[Peer], list[Port]]],
        also: Direction | None = None,
    ) -> None:
        """A policy over the pods with `pod_labels` (none: all); an empty list of rules denies its directions."""
        spec: networking.NetworkPolicySpecArgsDict = {
            "pod_selector": {"match_labels": pod_labels} if pod_labels else {},
            "policy_types": [direction, also] if also else [direction],
        }
        if direction == "Ingress" and rules:
            spec["ingress"] = [{"from_": peers, "ports": ports} for peers, ports in rules]
        if direction == "Egress" and rules:
            spec["egress"] = [{"to": peers, "ports": ports} for peers, ports in rules]
        networking.NetworkPolicy(what, metadata=pods.metadata(what, self._labels), spec=spec, opts=self.child())
