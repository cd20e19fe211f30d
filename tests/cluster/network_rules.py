"""Whether network policies let one end talk to another: the API's rules, evaluated over the objects of a cluster.

No packet flows here. Fake nodes have no data plane, so this says what a conforming one must do with the policies, pods and
namespaces that the API server holds; whether the cluster's own one (the VPC CNI) conforms is for a real cluster to show.

The rules: a pod that no policy selects for a direction is open in it; one that is selected is closed but for what any of these
policies allows. A connection needs both ends' consent. A peer outside the cluster has an address and no policy.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kube import Kube

Labels = Mapping[str, str]
Rule = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """One end: a pod by its labels and its namespace's."""

    namespace: str
    labels: Labels
    namespace_labels: Labels
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of its containers."""


@dataclass(frozen=True)
class Outside:
    """One end: an address outside the cluster."""

    address: str


End = Pod | Outside


@dataclass(frozen=True)
class Rules:
    """The policies of a cluster, as the API server holds them."""

    policies: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, kube: Kube) -> Rules:
        return cls(kube.list("NetworkPolicy", version="networking.k8s.io/v1"))

    def allow(self, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection may be made."""
        return self._allows("Egress", source, target, target, port, protocol) and self._allows(
            "Ingress", target, source, target, port, protocol
        )

    def _allows(
        self, direction: Literal["Ingress", "Egress"], own: End, peer: End, target: End, port: int, protocol: str
    ) -> bool:
        if isinstance(own, Outside):
            return True
        selecting = [policy for policy in self.policies if _selects(policy, own, direction)]
        key, side = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
        rules = [rule for policy in selecting for rule in policy["spec"].get(key) or ()]
        return not selecting or any(
            _is_peer(rule.get(side), peer, own.namespace) and _is_port(rule.get("ports"), target, port, protocol)
            for rule in rules
        )


def _selects(policy: Mapping[str, Any], pod: Pod, direction: str) -> bool:
    return (
        policy["metadata"]["namespace"] == pod.namespace
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"].get("podSelector") or {}, pod.labels)
    )


def _is_peer(peers: Iterable[Rule] | None, end: End, namespace: str) -> bool:
    """Whether `end` is one of `peers`; no list, or an empty one, means everybody."""
    return not peers or any(_is_one(peer, end, namespace) for peer in peers)


def _is_one(peer: Rule, end: End, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        # Blocks are for addresses outside; the API leaves open what they mean for a pod's.
        return isinstance(end, Outside) and _is_in(end.address, block)
    if isinstance(end, Outside):
        return False
    if selector := peer.get("namespaceSelector"):
        is_there = _matches(selector, end.namespace_labels)
    else:
        is_there = "namespaceSelector" in peer or end.namespace == namespace
    return is_there and _matches(peer.get("podSelector") or {}, end.labels)


def _is_in(address: str, block: Mapping[str, Any]) -> bool:
    number = ipaddress.ip_address(address)
    return number in ipaddress.ip_network(block["cidr"]) and not any(
        number in ipaddress.ip_network(hole) for hole in block.get("except") or ()
    )


def _is_port(ports: Iterable[Rule] | None, target: End, port: int, protocol: str) -> bool:
    if not ports:
        return True
    named = target.ports if isinstance(target, Pod) else {}
    for allowed in ports:
        first = allowed.get("port")
        first = named.get(first) if isinstance(first, str) else first
        last = allowed.get("endPort", first)
        if allowed.get("protocol", "TCP") == protocol and ("port" not in allowed or (first and first <= port <= last)):
            return True
    return False


def _matches(selector: Mapping[str, Any], labels: Labels) -> bool:
    wanted = (selector.get("matchLabels") or {}).items()
    return wanted <= labels.items() and all(_meets(term, labels) for term in selector.get("matchExpressions") or ())


def _meets(term: Mapping[str, Any], labels: Labels) -> bool:
    value, values = labels.get(term["key"]), term.get("values") or ()
    match term["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None
