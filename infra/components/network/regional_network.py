"""A VPC over three availability zones. What a zone needs lies in that zone, so losing one takes nothing from the others; a
cheaper environment may have one way out for all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.components.network.addresses import ZoneSubnets, plan_subnets
from infra.components.network.private_endpoints import PrivateEndpoints, PrivateEndpointsArgs
from infra.naming import StackName

ANYWHERE = "0.0.0.0/0"
LETTERS = "abc"
"""Zones as logical names call them: a zone's own name holds its region's, which no logical name may."""


@dataclass(frozen=True)
class RegionalNetworkArgs:
    """`vpc_cidr` is a /16 that no other region has; `zones` are three."""

    vpc_name: str
    cluster_name: str
    """Marks the subnets that nodes of this cluster may be launched in."""
    region: str
    vpc_cidr: ipaddress.IPv4Network
    zones: Sequence[str]
    num_zones_with_egress: int
    """1 or 3: NAT gateways and interface endpoints."""


class RegionalNetwork(Component):
    """VPC, public and private subnets, NAT gateways, private endpoints to AWS's APIs."""

    def __init__(
        self, name: str, args: RegionalNetworkArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("network:RegionalNetwork", name, stack, opts)
        self._args = args
        self.vpc = aws.ec2.Vpc(
            self.part("vpc"),
            cidr_block=str(args.vpc_cidr),
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags=self.tags(Name=args.vpc_name),
            opts=self.child(),
        )
        # Whatever is put in the default group by mistake can then reach nothing.
        aws.ec2.DefaultSecurityGroup(self.part("default-group"), vpc_id=self.vpc.id, tags=self.tags(), opts=self.child())
        self._internet = aws.ec2.InternetGateway(
            self.part("internet"), vpc_id=self.vpc.id, tags=self.tags(Name=args.vpc_name), opts=self.child()
        )
        public_routes = self._create_routes("public", "gateway_id", self._internet.id)
        planned = dict(zip(LETTERS, plan_subnets(args.vpc_cidr, args.zones), strict=True))
        public = {letter: self._create_public_subnet(letter, subnets, public_routes) for letter, subnets in planned.items()}
        gateways = [self._create_nat_gateway(letter, public[letter]) for letter in LETTERS[: args.num_zones_with_egress]]
        private: dict[str, aws.ec2.Subnet] = {}
        private_routes: list[aws.ec2.RouteTable] = []
        for index, (letter, subnets) in enumerate(planned.items()):
            gateway = gateways[index % len(gateways)]
            routes = self._create_routes(f"private-{letter}", "nat_gateway_id", gateway.id)
            private[letter] = self._create_private_subnet(letter, subnets, routes)
            private_routes.append(routes)
        self.private_subnets = dict(zip(args.zones, private.values(), strict=True))
        """By availability zone."""
        self.private_subnet_ids = [subnet.id for subnet in private.values()]
        self.public_subnet_ids = [subnet.id for subnet in public.values()]
        PrivateEndpoints(
            self.part("endpoints"),
            PrivateEndpointsArgs(
                vpc_name=args.vpc_name,
                region=args.region,
                vpc_id=self.vpc.id,
                vpc_cidr=str(args.vpc_cidr),
                subnet_ids=self.private_subnet_ids[: args.num_zones_with_egress],
                route_table_ids=[routes.id for routes in private_routes],
            ),
            stack,
            self.child(),
        )
        self.register_outputs({"vpc_id": self.vpc.id})

    def _create_public_subnet(self, letter: str, subnets: ZoneSubnets, routes: aws.ec2.RouteTable) -> aws.ec2.Subnet:
        marks = {"kubernetes.io/role/elb": "1"}
        return self._create_subnet(f"public-{letter}", subnets.zone, subnets.public, marks, routes)

    def _create_private_subnet(self, letter: str, subnets: ZoneSubnets, routes: aws.ec2.RouteTable) -> aws.ec2.Subnet:
        marks = {"kubernetes.io/role/internal-elb": "1", "karpenter.sh/discovery": self._args.cluster_name}
        return self._create_subnet(f"private-{letter}", subnets.zone, subnets.private, marks, routes)

    def _create_subnet(
        self, what: str, zone: str, cidr: ipaddress.IPv4Network, marks: dict[str, str], routes: aws.ec2.RouteTable
    ) -> aws.ec2.Subnet:
        """`marks` are the tags by which the load balancer controller and Karpenter find their subnets."""
        subnet = aws.ec2.Subnet(
            self.part(what),
            vpc_id=self.vpc.id,
            availability_zone=zone,
            cidr_block=str(cidr),
            map_public_ip_on_launch=False,
            tags=self.tags(Name=f"{self._args.vpc_name}-{what}", **marks),
            opts=self.child(),
        )
        aws.ec2.RouteTableAssociation(
            self.part(f"{what}-routes"), subnet_id=subnet.id, route_table_id=routes.id, opts=self.child()
        )
        return subnet

    def _create_nat_gateway(self, letter: str, subnet: aws.ec2.Subnet) -> aws.ec2.NatGateway:
        tags = self.tags(Name=f"{self._args.vpc_name}-{letter}")
        address = aws.ec2.Eip(
            self.part(f"nat-address-{letter}"), domain="vpc", tags=tags, opts=self.child(depends_on=[self._internet])
        )
        return aws.ec2.NatGateway(
            self.part(f"nat-{letter}"),
            subnet_id=subnet.id,
            allocation_id=address.id,
            tags=tags,
            opts=self.child(depends_on=[self._internet]),
        )

    def _create_routes(
        self, what: str, kind: Literal["gateway_id", "nat_gateway_id"], way_out: pulumi.Input[str]
    ) -> aws.ec2.RouteTable:
        """A route table that leads out by `way_out`."""
        routes = aws.ec2.RouteTable(
            self.part(f"{what}-table"),
            vpc_id=self.vpc.id,
            tags=self.tags(Name=f"{self._args.vpc_name}-{what}"),
            opts=self.child(),
        )
        aws.ec2.Route(
            self.part(f"{what}-default"),
            route_table_id=routes.id,
            destination_cidr_block=ANYWHERE,
            gateway_id=way_out if kind == "gateway_id" else None,
            nat_gateway_id=way_out if kind == "nat_gateway_id" else None,
            opts=self.child(),
        )
        return routes
