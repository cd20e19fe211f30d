"""Nodes that follow demand: Karpenter's node classes and pools, for GPUs bought on demand and on spot, and for gateways.

| pool | a node is removed | and has for its pods |
|---|---|---|
| on-demand GPUs | empty for 30 minutes: no engine is moved to save money, since a cold start takes minutes | 45 minutes |
| spot GPUs | empty for 5 minutes | the same, or two minutes after AWS's notice |
| gateways | empty for 30 minutes: a journal follows its gateway within its zone only | 45 minutes |

No node ends for its age (`expireAfter` ignores budgets), and drift, such as a new image, takes one node of a pool at a time.
Engines over several nodes want EFA and a placement group: those of the cluster stack's reserved pools. Nodes here have neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource

from infra import timers
from infra.components.component import Component
from infra.components.workloads import pods
from infra.instances import INSTANCE_SHAPES
from infra.naming import StackName
from infra.scheduling import GATEWAY_POOL, Capacity, Taint, gpu_taints, node_labels
from infra.stack_config.serving import ElasticPool, PoolsConfig

GPU_CLASS, GATEWAY_CLASS = "gpu", "gateway"
GPU_ROOT_GIB, GATEWAY_ROOT_GIB = 200, 100
"""Disk of the system. A GPU node's images and model caches lie on its instance store; elsewhere this carries all."""
GPU_ROOT_THROUGHPUT_MIB_S = 1000
"""An engine's image is some 10 GB, and gp3's default of 125 MiB/s takes longer to unpack it than the network to bring it."""
IDLE_BEFORE_REMOVAL: Mapping[Capacity, str] = {Capacity.ON_DEMAND: "30m", Capacity.SPOT: "5m"}
WEIGHTS: Mapping[Capacity, int] = {Capacity.ON_DEMAND: 50, Capacity.SPOT: 10}
GATEWAY_FAMILIES = ("c7i", "c7a", "m7i")
GATEWAY_VCPUS = ("16",)
"""Three of our gateways (4 vCPU each) beside what every node runs; on 8 vCPUs there is room for one."""


@dataclass(frozen=True)
class ElasticNodePoolsArgs:
    """`zones` says where each GPU instance type is offered; every type of `pools` must be in it."""

    pools: PoolsConfig
    zones: Mapping[str, Sequence[str]]
    image_alias: pulumi.Input[str]
    """The node image as Karpenter names it; a pinned one, since drift follows a moving name."""
    instance_profile: pulumi.Input[str]
    subnet_ids: pulumi.Input[Sequence[str]]
    security_group_id: pulumi.Input[str]


class ElasticNodePools(Component):
    """EC2NodeClasses and NodePools of a region."""

    def __init__(
        self, name: str, args: ElasticNodePoolsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("gpu:ElasticNodePools", name, stack, opts)
        self._args = args
        if args.pools.gateway_max_nodes:
            self._create_class(GATEWAY_CLASS, _disk(GATEWAY_ROOT_GIB))
            self._create_gateway_pool()
        if args.pools.on_demand or args.pools.spot:
            self._create_class(GPU_CLASS, _disk(GPU_ROOT_GIB, GPU_ROOT_THROUGHPUT_MIB_S), {"instanceStorePolicy": "RAID0"})
        for capacity, pools in ((Capacity.ON_DEMAND, args.pools.on_demand), (Capacity.SPOT, args.pools.spot)):
            for pool_name, pool in pools.items():
                self._create_gpu_pool(f"{pool_name}-{capacity}", pool, capacity)
        self.register_outputs({})

    def _create_class(self, name: str, disk: dict[str, Any], further: Mapping[str, Any] | None = None) -> None:
        self._create(
            "karpenter.k8s.aws",
            "EC2NodeClass",
            name,
            {
                "amiSelectorTerms": [{"alias": self._args.image_alias}],
                "instanceProfile": self._args.instance_profile,
                "subnetSelectorTerms": pulumi.Output.from_input(self._args.subnet_ids).apply(
                    lambda subnets: [{"id": subnet} for subnet in subnets]
                ),
                "securityGroupSelectorTerms": [{"id": self._args.security_group_id}],
                "associatePublicIPAddress": False,
                "metadataOptions": {"httpEndpoint": "enabled", "httpTokens": "required", "httpPutResponseHopLimit": 1},
                "blockDeviceMappings": [{"deviceName": "/dev/xvda", "rootVolume": True, "ebs": disk}],
                "tags": self.tags(Name=f"{self.stack.environment}-{name}"),
                **(further or {}),
            },
        )

    def _create_gpu_pool(self, name: str, pool: ElasticPool, capacity: Capacity) -> None:
        shape = INSTANCE_SHAPES[pool.instance_type]
        self._create_pool(
            name,
            GPU_CLASS,
            node_labels(name, capacity, shape.gpu),
            {
                "node.kubernetes.io/instance-type": (pool.instance_type,),
                "karpenter.sh/capacity-type": (str(capacity),),
                "topology.kubernetes.io/zone": tuple(self._args.zones[pool.instance_type]),
            },
            max_nodes=pool.max_nodes,
            capacity=capacity,
            taints=gpu_taints(capacity),
        )

    def _create_gateway_pool(self) -> None:
        self._create_pool(
            GATEWAY_POOL,
            GATEWAY_CLASS,
            node_labels(GATEWAY_POOL, Capacity.ON_DEMAND),
            {
                "karpenter.k8s.aws/instance-family": GATEWAY_FAMILIES,
                "karpenter.k8s.aws/instance-cpu": GATEWAY_VCPUS,
                "kubernetes.io/arch": ("amd64",),
                "karpenter.sh/capacity-type": (str(Capacity.ON_DEMAND),),
            },
            max_nodes=self._args.pools.gateway_max_nodes,
            capacity=Capacity.ON_DEMAND,
        )

    def _create_pool(
        self,
        name: str,
        node_class: str,
        labels: Mapping[str, str],
        wanted: Mapping[str, Sequence[str]],
        *,
        max_nodes: int,
        capacity: Capacity,
        taints: Sequence[Taint] = (),
    ) -> None:
        self._create(
            "karpenter.sh",
            "NodePool",
            name,
            {
                "weight": WEIGHTS[capacity],
                "limits": {"nodes": str(max_nodes)},
                "disruption": {
                    "consolidationPolicy": "WhenEmpty",
                    "consolidateAfter": IDLE_BEFORE_REMOVAL[capacity],
                    "budgets": [{"nodes": "1"}],
                },
                "template": {
                    "metadata": {"labels": dict(labels)},
                    "spec": {
                        "nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": node_class},
                        "expireAfter": "Never",
                        "terminationGracePeriod": f"{timers.NODE_TERMINATION_S // 60}m",
                        "requirements": [
                            {"key": key, "operator": "In", "values": list(values)} for key, values in wanted.items()
                        ],
                        **(
                            {"taints": [{"key": it.key, "value": it.value, "effect": it.effect} for it in taints]}
                            if taints
                            else {}
                        ),
                    },
                },
            },
        )

    def _create(self, group: str, kind: str, name: str, spec: dict[str, Any]) -> None:
        CustomResource(
            name,
            api_version=f"{group}/v1",
            kind=kind,
            metadata={"name": name, "labels": pods.labels(self.stack, self._name, name)},
            spec=spec,
            opts=self.child(),
        )


def _disk(size_gib: int, throughput_mib_s: int | None = None) -> dict[str, Any]:
    """An encrypted gp3 volume that goes with its node."""
    disk = {"volumeType": "gp3", "volumeSize": f"{size_gib}Gi", "encrypted": True, "deleteOnTermination": True}
    # gp3 takes a quarter of a MiB/s for each operation per second.
    return {**disk, "throughput": throughput_mib_s, "iops": 4 * throughput_mib_s} if throughput_mib_s else disk
