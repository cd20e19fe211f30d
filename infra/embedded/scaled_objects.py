"""The ScaledObjects of a recorded stack, as what sizes this machine's workloads.

One is honoured where its first trigger is a number of replicas that gateways export: its further triggers are for the time
without that number, when here the size stays. Any other is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from infra.embedded.desired import Scaling, Workload
from infra.embedded.graph import Graph, Resource
from infra.naming import GATEWAY
from policies.autoscaling.pace import TOLERANCE, Pace
from serving.errors import UserError

SCALED_OBJECT = "kubernetes:keda.sh/v1alpha1:ScaledObject"
_DESIRED = re.compile(r"max\((?P<series>\w+)\{(?P<labels>[^}]*)\}\)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def scaled(workloads: Sequence[Workload], graph: Graph) -> list[Workload]:
    """`workloads`, those with a ScaledObject sized by it.

    Raises:
        UserError: one asks for something else than a number that gateways export.
    """
    objects = {
        (it.inputs["metadata"]["namespace"], it.inputs["spec"]["scaleTargetRef"]["name"]): it
        for it in graph.of_type(SCALED_OBJECT)
    }
    sized = []
    for workload in workloads:
        found = objects.get((workload.namespace, workload.name))
        if found is not None:
            scaling = _scaling(found, workload, workloads)
            workload = msgspec.structs.replace(workload, replicas=scaling.minimum, scaling=scaling)
        sized.append(workload)
    return sized


def _scaling(found: Resource, workload: Workload, workloads: Sequence[Workload]) -> Scaling:
    spec = found.inputs["spec"]
    desired = _DESIRED.fullmatch(spec["triggers"][0]["metadata"]["query"])
    gateway = next((each for each in workloads if (each.namespace, each.name) == (workload.namespace, GATEWAY)), None)
    if desired is None or gateway is None:
        raise UserError(
            f"{found.urn}: the first trigger is not `max(<series>{{<labels>}})` of a gateway's, as one machine needs it",
            "leave it out of local",
        )
    return Scaling(
        minimum=max(1, spec["minReplicaCount"]),
        maximum=spec["maxReplicaCount"],
        series=desired["series"],
        labels=dict(_LABEL.findall(desired["labels"])),
        source=gateway.key,
        port=next(container.ports["ops"] for container in gateway.template.containers if "ops" in container.ports),
        pace=_pace(spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]),
    )


def _pace(behavior: Mapping[str, Any]) -> Pace:
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    ups = {policy["type"]: policy for policy in up["policies"]}
    (downs,) = down["policies"]
    return Pace(
        pods_up=ups["Pods"]["value"],
        up_period_s=ups["Pods"]["periodSeconds"],
        up_window_s=up["stabilizationWindowSeconds"],
        pods_down=downs["value"],
        down_period_s=downs["periodSeconds"],
        down_window_s=down["stabilizationWindowSeconds"],
        max_growth_ratio=1 + ups["Percent"]["value"] / 100 if "Percent" in ups else 1.0,
        tolerance_ratio=float(up.get("tolerance", TOLERANCE)),
    )
