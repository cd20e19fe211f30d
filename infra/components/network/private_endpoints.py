"""AWS's APIs from inside the VPC, without the way over a NAT gateway.

What nodes need to start and pods to get credentials stays reachable when a NAT gateway is not, and the gigabytes of images and
weights cost no NAT charge: the gateway endpoints, S3's above all, are free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.naming import StackName

GATEWAYS = ("dynamodb", "s3")
INTERFACES: Mapping[str, str] = {
    "ec2": "nodes look themselves up, Karpenter launches others",
    "ecr.api": "images",
    "ecr.dkr": "images",
    "eks": "nodes and controllers look the cluster up",
    "eks-auth": "pods get credentials",
    "elasticloadbalancing": "pods enter and leave target groups",
    "kms": "keys of secrets and objects",
    "logs": "what add-ons write down",
    "secretsmanager": "pepper and salts",
    "sqs": "interruption notices",
    "ssm": "identifiers of node images",
    "sts": "credentials",
}
"""By service: who asks it."""


@dataclass(frozen=True)
class PrivateEndpointsArgs:
    """`subnet_ids` get the interface endpoints; `route_table_ids` the routes of the gateway endpoints."""

    vpc_name: str
    region: str
    vpc_id: pulumi.Input[str]
    vpc_cidr: str
    subnet_ids: Sequence[pulumi.Input[str]]
    route_table_ids: Sequence[pulumi.Input[str]]


class PrivateEndpoints(Component):
    """Gateway and interface endpoints, and the group that lets the VPC reach the latter by HTTPS."""

    def __init__(
        self, name: str, args: PrivateEndpointsArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("network:PrivateEndpoints", name, stack, opts)
        group = aws.ec2.SecurityGroup(
            self.part("group"),
            name=f"{args.vpc_name}-endpoints",
            description="AWS APIs inside the VPC",
            vpc_id=args.vpc_id,
            tags=self.tags(Name=f"{args.vpc_name}-endpoints"),
            opts=self.child(),
        )
        aws.vpc.SecurityGroupIngressRule(
            self.part("https"),
            security_group_id=group.id,
            description="HTTPS from the VPC",
            cidr_ipv4=args.vpc_cidr,
            ip_protocol="tcp",
            from_port=443,
            to_port=443,
            tags=self.tags(),
            opts=self.child(),
        )
        for service in GATEWAYS:
            aws.ec2.VpcEndpoint(
                self.part(service),
                vpc_id=args.vpc_id,
                service_name=f"com.amazonaws.{args.region}.{service}",
                vpc_endpoint_type="Gateway",
                route_table_ids=args.route_table_ids,
                tags=self.tags(Name=f"{args.vpc_name}-{service}"),
                opts=self.child(),
            )
        for service in INTERFACES:
            aws.ec2.VpcEndpoint(
                self.part(service.replace(".", "-")),
                vpc_id=args.vpc_id,
                service_name=f"com.amazonaws.{args.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=args.subnet_ids,
                security_group_ids=[group.id],
                tags=self.tags(Name=f"{args.vpc_name}-{service}"),
                opts=self.child(),
            )
        self.register_outputs({})
