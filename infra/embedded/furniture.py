"""What stands on one machine for things that are no pods of a region's: the emulated AWS, each region's way to it, the edge.

The agent supervises them like workloads, at fixed addresses of the state folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from infra.embedded import aws_front, edge, faults
from infra.embedded.aws_server import environment as aws_environment
from infra.embedded.desired import Action, Container, Probe, Service, Template, Workload
from infra.embedded.realise_aws import INFRASTRUCTURE
from infra.embedded.state import Instance, State
from policies.failover.rotation import Check

AWS_INDEX, FIRST_CACHE_INDEX, FIRST_FRONT_INDEX, EDGE_INDEX = 1, 2, 32, 48
EDGE_PORT = 8070
AWS_GRACE_S = 20
FRONT_GRACE_S = 2
EDGE_GRACE_S = 5
FRONT, EDGE = "aws-front", "edge"


def emulated_aws(state: State, instance: Instance) -> Workload:
    """The AWS of all regions."""
    address = state.address(AWS_INDEX)
    probe = Probe(
        action=Action(kind="http", path="/_ministack/ready", port=instance.aws_port), period_s=0.1, failure_threshold=200
    )
    container = Container(
        name="ministack",
        command=(sys.executable, "-m", "infra.embedded.aws_server"),
        host_env=aws_environment(address, instance.aws_port, state.aws, state.faults),
        ports={"http": instance.aws_port},
        startup=probe,
    )
    return _infrastructure("", "aws", container, address, AWS_GRACE_S)


def front_of(state: State, region: str, index: int, aws: Workload, instance: Instance) -> Workload:
    """The way of the `index`-th region of its environment to the emulated AWS."""
    address, port = state.address(FIRST_FRONT_INDEX + index), instance.aws_port
    upstream = f"{aws.address}:{port}"
    container = Container(
        name="front",
        command=(sys.executable, "-m", "infra.embedded.aws_front"),
        host_env=aws_front.environment(address, port, upstream, faults.path_of(state, region)),
        ports={"http": port},
        startup=Probe(action=Action(kind="tcp", port=port), period_s=0.1, failure_threshold=100),
    )
    return _infrastructure(region, FRONT, container, address, FRONT_GRACE_S)


def edge_before(
    state: State, regions: Mapping[str, str], checks: Mapping[str, tuple[Check, ...]], port_offset: int
) -> tuple[Workload, Service]:
    """One address for all `regions`, given as host:port by name, with the program's health `checks`."""
    address = state.address(EDGE_INDEX)
    settings = edge.EdgeSettings(  # sorted: the order in which regions came up must not roll the edge
        host=address,
        port=EDGE_PORT,
        regions=dict(sorted(regions.items())),
        checks={region: checks.get(region, ()) for region in sorted(regions)},
    )
    container = Container(
        name="envoy",
        command=(sys.executable, "-m", "infra.embedded.edge"),
        host_env=edge.environment(settings),
        ports={"http": EDGE_PORT},
        startup=Probe(action=Action(kind="tcp", port=EDGE_PORT), period_s=0.1, failure_threshold=200),
    )
    workload = _infrastructure("", EDGE, container, address, EDGE_GRACE_S)
    ports = {"http": EDGE_PORT}
    return workload, Service(
        region="",
        namespace=INFRASTRUCTURE,
        name=EDGE,
        workloads=(workload.key,),
        ports=ports,
        host_ports={name: port + port_offset for name, port in ports.items()},
    )


def url_of(workload: Workload) -> str:
    """Where it answers."""
    (container,) = workload.template.containers
    return f"http://{workload.address}:{container.ports['http']}"


def _infrastructure(region: str, name: str, container: Container, address: str, grace_s: float) -> Workload:
    return Workload(
        region=region,
        namespace=INFRASTRUCTURE,
        name=name,
        kind="Infrastructure",
        replicas=1,
        template=Template(containers=(container,), grace_s=grace_s),
        address=address,
    )
