"""Counts what a stack buys: resources to lines of a bill, in dollars an hour.

Two sums, never mixed. The *floor* runs whatever happens: clusters, reserved nodes, the on-demand nodes that base engines need
beyond them, gateways. The *ceiling* is what autoscaling may add up to: pools at their limits. What is billed by use is listed
with what it depends on, and a type that nobody priced is listed as unpriced; neither is ever counted as nothing.

GPU nodes are counted from what engines ask for, since Karpenter makes nodes for pods:

    base engines 12, 1 GPU each;  reserved 8 GPUs;  on-demand pool of 8 GPUs a node:  ceil((12 - 8) / 8) = 1 node
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.costs.prices import Line, PriceBook
from policies.resources import Declared, at, listed

NODE_POOL = "kubernetes:karpenter.sh/v1:NodePool"
SCALED_OBJECT = "kubernetes:keda.sh/v1alpha1:ScaledObject"
WORKLOADS = ("kubernetes:apps/v1:Deployment", "kubernetes:apps/v1:StatefulSet")
NODE_GROUP = "aws:eks/nodeGroup:NodeGroup"
GPU_RESOURCE = "nvidia.com/gpu"
GPU_LABEL = "flotilla.dev/gpu"
CAPACITY_TYPE = "karpenter.sh/capacity-type"
INSTANCE_TYPE = "node.kubernetes.io/instance-type"
FAST_INTERVAL_S = 10


@dataclass(frozen=True)
class Bill:
    """What one stack costs."""

    stack: str
    floor: tuple[Line, ...]
    growth: tuple[Line, ...]
    """What autoscaling may add."""
    by_use: Mapping[str, str]
    """Types of this stack that are billed by use, with what their bill depends on."""
    unpriced: Mapping[str, int]
    """Types without a price, with how many there are."""
    unconfirmed_usd_per_h: float
    """Part of the floor whose price was not read from its source."""

    @property
    def floor_usd_per_h(self) -> float:
        """What runs whatever happens."""
        return sum(line.usd_per_h for line in self.floor)

    @property
    def ceiling_usd_per_h(self) -> float:
        """With every pool at its limit."""
        return self.floor_usd_per_h + sum(line.usd_per_h for line in self.growth)


@dataclass(frozen=True)
class Bought:
    """So much of one price, before anybody looks the price up."""

    key: str
    quantity: float
    note: str = ""


def bills(stacks: Mapping[str, Sequence[Declared]], book: PriceBook, gpus_per_node: Mapping[str, int]) -> tuple[Bill, ...]:
    """A bill for each stack, in order. `gpus_per_node` is by instance type.

    A serving stack needs to know what its cluster has reserved: without `<env>.cluster.<region>` among `stacks`, nothing is.
    """
    return tuple(_bill(stack, resources, stacks, book, gpus_per_node) for stack, resources in stacks.items())


def _bill(
    stack: str,
    resources: Sequence[Declared],
    stacks: Mapping[str, Sequence[Declared]],
    book: PriceBook,
    gpus_per_node: Mapping[str, int],
) -> Bill:
    reserved = _reserved_gpus(stacks.get(stack.replace(".serving.", ".cluster."), ()), gpus_per_node)
    floor: list[Line] = []
    growth: list[Line] = []
    unpriced: Counter[str] = Counter()
    for resource in resources:
        if not resource.is_custom or resource.type.startswith("pulumi:"):
            continue
        always = list(_always(resource, resources))
        for bought in always:
            _add(floor, unpriced, resource, bought, book)
        if resource.type == NODE_POOL:
            for bought in _beyond_reserved(resource, resources, reserved, gpus_per_node):
                _add(floor, unpriced, resource, bought, book)
            for bought in _at_its_limit(resource, resources, reserved, gpus_per_node, book):
                _add(growth, unpriced, resource, bought, book)
        elif not always and not _is_known(resource.type, book):
            unpriced[resource.type] += 1
    types = {resource.type for resource in resources}
    return Bill(
        stack=stack,
        floor=tuple(floor),
        growth=tuple(growth),
        by_use={kind: why for kind, why in book.by_use.items() if kind in types},
        unpriced=dict(sorted(unpriced.items())),
        unconfirmed_usd_per_h=sum(line.usd_per_h for line in floor if not book.prices[line.key].is_confirmed),
    )


def _add(lines: list[Line], unpriced: Counter[str], resource: Declared, bought: Bought, book: PriceBook) -> None:
    price = book.prices.get(bought.key)
    if price is None:
        unpriced[f"{resource.type} ({bought.key})"] += 1
        return
    factor = 1 - book.spot.discount_ratio if bought.note.startswith("spot") else 1.0
    usd_per_h = price.usd_per_h * bought.quantity * factor
    if bought.quantity:
        lines.append(
            Line(resource.stack, resource.urn, resource.name, resource.type, bought.key, bought.quantity, usd_per_h, bought.note)
        )


def _is_known(kind: str, book: PriceBook) -> bool:
    return kind in book.by_use or kind in COUNTERS or any(kind.startswith(free) for free in book.free)


def _always(resource: Declared, resources: Sequence[Declared]) -> Iterator[Bought]:
    counter = COUNTERS.get(resource.type)
    return counter(resource, resources) if counter else iter(())


def _node_group(group: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    number = at(group.inputs, "scalingConfig", "desiredSize") or at(group.inputs, "scalingConfig", "minSize") or 0
    reserved = "a reservation costs its on-demand price, used or not" if group.at("labels", GPU_LABEL) else ""
    yield Bought(f"ec2:{_instance_type(group)}", number, reserved)


def _endpoint(endpoint: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    if endpoint.at("vpcEndpointType") == "Interface":
        yield Bought("vpc:interface-endpoint-zone", len(listed(endpoint.at("subnetIds"))))


def _cache(cache: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    yield Bought(f"elasticache:{cache.at('engine')}:{cache.at('nodeType')}", cache.at("numCacheClusters") or 1)


def _secret(secret: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    yield Bought("secretsmanager:secret", 1 + len(listed(secret.at("replicas"))))


def _health_check(check: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    yield Bought("route53:health-check", 1)
    options = [
        str(check.at("type") or "").startswith("HTTPS"),
        "STR_MATCH" in str(check.at("type") or ""),
        check.at("requestInterval") == FAST_INTERVAL_S,
        bool(check.at("measureLatency")),
    ]
    if any(options):
        yield Bought("route53:health-check-option", sum(options))


def _web_acl(acl: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
    yield Bought("wafv2:web-acl", 1)
    yield Bought("wafv2:rule", len(listed(acl.at("rules"))))


def _flat(key: str) -> Callable[[Declared, Sequence[Declared]], Iterator[Bought]]:
    def count(_resource: Declared, _all: Sequence[Declared]) -> Iterator[Bought]:
        yield Bought(key, 1)

    return count


COUNTERS: Mapping[str, Callable[[Declared, Sequence[Declared]], Iterator[Bought]]] = {
    NODE_GROUP: _node_group,
    "aws:eks/cluster:Cluster": _flat("eks:cluster"),
    "aws:ec2/natGateway:NatGateway": _flat("vpc:nat-gateway"),
    "aws:ec2/eip:Eip": _flat("vpc:public-ipv4"),
    "aws:ec2/vpcEndpoint:VpcEndpoint": _endpoint,
    "aws:lb/loadBalancer:LoadBalancer": _flat("elb:application"),
    "aws:elasticache/replicationGroup:ReplicationGroup": _cache,
    "aws:kms/key:Key": _flat("kms:key"),
    "aws:kms/replicaKey:ReplicaKey": _flat("kms:key"),
    "aws:secretsmanager/secret:Secret": _secret,
    "aws:route53/zone:Zone": _flat("route53:zone"),
    "aws:route53/healthCheck:HealthCheck": _health_check,
    "aws:wafv2/webAcl:WebAcl": _web_acl,
    "aws:globalaccelerator/accelerator:Accelerator": _flat("globalaccelerator:accelerator"),
}
"""What is paid for by being there. Everything else is by use, free, or unpriced."""


def _beyond_reserved(
    pool: Declared, resources: Sequence[Declared], reserved: Mapping[str, int], gpus_per_node: Mapping[str, int]
) -> Iterator[Bought]:
    """On-demand nodes that base engines need beyond what is reserved."""
    instance_type, gpu = _pool_type(pool), _pool_gpu(pool)
    if not gpu or _pool_capacity(pool) != "on-demand" or instance_type not in gpus_per_node:
        return
    missing = _base_gpus(resources, gpu) - reserved.get(gpu, 0)
    if missing > 0:
        yield Bought(f"ec2:{instance_type}", math.ceil(missing / gpus_per_node[instance_type]), "on-demand nodes of the floor")


def _at_its_limit(
    pool: Declared,
    resources: Sequence[Declared],
    reserved: Mapping[str, int],
    gpus_per_node: Mapping[str, int],
    book: PriceBook,
) -> Iterator[Bought]:
    """What the pool may add to the floor. A pool of several types is counted at the dearest that has a price."""
    max_nodes = int(at(pool.inputs, "spec", "limits", "nodes") or 0)
    already = sum(bought.quantity for bought in _beyond_reserved(pool, resources, reserved, gpus_per_node))
    note = "spot, at its assumed discount" if _pool_capacity(pool) == "spot" else "on demand"
    key = f"ec2:{_pool_type(pool)}" if _pool_type(pool) else _dearest(pool, book)
    yield Bought(key, max(0.0, max_nodes - already), note)


def _dearest(pool: Declared, book: PriceBook) -> str:
    families = _requirement(pool, "karpenter.k8s.aws/instance-family")
    known = [key for key in book.prices if key.startswith("ec2:") and key[4:].split(".")[0] in families]
    return max(known, key=lambda key: book.prices[key].usd_per_h, default=f"ec2:{'|'.join(families)}")


def _base_gpus(resources: Sequence[Declared], gpu: str) -> int:
    """GPUs that base engines of this kind ask for at their smallest number."""
    smallest = {
        at(scaled.inputs, "spec", "scaleTargetRef", "name"): int(at(scaled.inputs, "spec", "minReplicaCount") or 0)
        for scaled in resources
        if scaled.type == SCALED_OBJECT
    }
    total = 0
    for workload in resources:
        pod = workload.at("spec", "template", "spec")
        if workload.type not in WORKLOADS or _on_spot(pod) or gpu not in _wanted_gpus(pod):
            continue
        replicas = workload.at("spec", "replicas")
        number = int(replicas) if replicas is not None else smallest.get(workload.at("metadata", "name"), 0)
        total += number * sum(
            int(at(container, "resources", "requests", GPU_RESOURCE) or 0) for container in listed(at(pod, "containers"))
        )
    return total


def _reserved_gpus(resources: Sequence[Declared], gpus_per_node: Mapping[str, int]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for group in resources:
        gpu = group.at("labels", GPU_LABEL)
        if group.type == NODE_GROUP and gpu:
            found[str(gpu)] += int(group.at("scalingConfig", "minSize") or 0) * gpus_per_node.get(_instance_type(group), 0)
    return found


def _instance_type(group: Declared) -> str:
    return str((listed(group.at("instanceTypes")) or [group.at("labels", INSTANCE_TYPE) or "unknown"])[0])


def _wanted_gpus(pod: Any) -> list[str]:
    terms = listed(at(pod, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"))
    return [
        str(value)
        for term in terms
        for wanted in listed(at(term, "matchExpressions"))
        if at(wanted, "key") == GPU_LABEL
        for value in listed(at(wanted, "values"))
    ]


def _on_spot(pod: Any) -> bool:
    return any(at(item, "value") == "spot" for item in listed(at(pod, "tolerations")))


def _requirement(pool: Declared, key: str) -> list[str]:
    requirements = listed(pool.at("spec", "template", "spec", "requirements"))
    return [str(value) for item in requirements if at(item, "key") == key for value in listed(at(item, "values"))]


def _pool_type(pool: Declared) -> str:
    return next(iter(_requirement(pool, INSTANCE_TYPE)), "")


def _pool_capacity(pool: Declared) -> str:
    return next(iter(_requirement(pool, CAPACITY_TYPE)), "")


def _pool_gpu(pool: Declared) -> str:
    return str(pool.at("spec", "template", "metadata", "labels", GPU_LABEL) or "")
