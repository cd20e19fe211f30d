"""What stands on one machine for things that are no pods of a region's: the emulated AWS, and each region's way to it.

The agent supervises them like workloads, at fixed addresses of the state folder.
"""

from __future__ import annotations

import sys

from infra.embedded import aws_front, faults
from infra.embedded.aws_server import environment as aws_environment
from infra.embedded.desired import Action, Container, Probe, Template, Workload
from infra.embedded.realise_aws import INFRASTRUCTURE
from infra.embedded.state import Instance, State

AWS_INDEX, FIRST_CACHE_INDEX, FIRST_FRONT_INDEX = 1, 2, 32
AWS_GRACE_S = 20
FRONT_GRACE_S = 2
FRONT = "aws-front"


def emulated_aws(state: State, instance: Instance) -> Workload:
    """The AWS of all regions."""
    address = state.address(AWS_INDEX)
    probe = Probe(
        action=Action(kind="http", path="/_ministack/ready", port=instance.aws_port), period_s=0.1, failure_threshold=200
    )
    container = Container(
        name="ministack",
        command=(sys.executable, "-m", "infra.embedded.aws_server"),
        host_env=aws_environment(address, instance.aws_port, state.aws),
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
