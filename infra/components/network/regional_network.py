"""A VPC over three availability zones. What a zone needs lies in that zone, so losing one takes nothing from the others."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra.components.component import Component
from infra.components.network.addresses import ZoneSubnets, plan_subnets
from infra.naming import StackName

ANYWHERE = "0.0.0.0/0"


@dataclass(frozen=True)
class RegionalNetworkArgs:
    """`vpc_cidr` is a /16 that no other region has; `zones` are three."""

    vpc_name: str
    region: str
    vpc_cidr: ipaddress.IPv4Network
    zones: Sequence[str]


class RegionalNetwork(Component):
    """VPC, public and private subnets, a NAT gateway a zone, and gateway endpoints for S3 and DynamoDB, which cost nothing."""

    def __init__(
        self, name: str, args: RegionalNetworkArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("network:RegionalNetwork", name, stack, opts)
        self._vpc_name = args.vpc_name
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
        internet = aws.ec2.InternetGateway(
            self.part("internet"), vpc_id=self.vpc.id, tags=self.tags(Name=args.vpc_name), opts=self.child()
        )
        public_routes = aws.ec2.RouteTable(
            self.part("public-routes"), vpc_id=self.vpc.id, tags=self.tags(Name=f"{args.vpc_name}-public"), opts=self.child()
        )
        aws.ec2.Route(
            self.part("public-default"),
            route_table_id=public_routes.id,
            destination_cidr_block=ANYWHERE,
            gateway_id=internet.id,
            opts=self.child(),
        )
        self.private_subnet_ids: list[pulumi.Output[str]] = []
        private_route_ids: list[pulumi.Output[str]] = []
        for letter, subnets in zip("abc", plan_subnets(args.vpc_cidr, args.zones), strict=True):
            private_route_ids.append(self._create_zone(letter, subnets, public_routes, internet))
        self._create_endpoints(args.region, private_route_ids)
        self.register_outputs({"vpc_id": self.vpc.id})

    def _create_zone(
        self, letter: str, subnets: ZoneSubnets, public_routes: aws.ec2.RouteTable, internet: aws.ec2.InternetGateway
    ) -> pulumi.Output[str]:
        """Makes the zone's subnets and NAT, and returns the id of its private route table.

        `letter` names them: the zone's own name holds the region's, which no logical name may.
        """
        public = self._create_subnet(f"public-{letter}", subnets.zone, subnets.public, role="elb")
        private = self._create_subnet(f"private-{letter}", subnets.zone, subnets.private, role="internal-elb")
        self.private_subnet_ids.append(private.id)
        self._associate(f"public-{letter}", public, public_routes)
        address = aws.ec2.Eip(
            self.part(f"nat-address-{letter}"), domain="vpc", tags=self.tags(), opts=self.child(depends_on=[internet])
        )
        nat = aws.ec2.NatGateway(
            self.part(f"nat-{letter}"),
            subnet_id=public.id,
            allocation_id=address.id,
            tags=self.tags(),
            opts=self.child(depends_on=[internet]),
        )
        routes = aws.ec2.RouteTable(
            self.part(f"private-routes-{letter}"),
            vpc_id=self.vpc.id,
            tags=self.tags(Name=f"{self._vpc_name}-private-{letter}"),
            opts=self.child(),
        )
        aws.ec2.Route(
            self.part(f"private-default-{letter}"),
            route_table_id=routes.id,
            destination_cidr_block=ANYWHERE,
            nat_gateway_id=nat.id,
            opts=self.child(),
        )
        self._associate(f"private-{letter}", private, routes)
        return routes.id

    def _create_subnet(self, what: str, zone: str, cidr: ipaddress.IPv4Network, role: str) -> aws.ec2.Subnet:
        """`role` is the mark by which the load balancer controller finds its subnets."""
        return aws.ec2.Subnet(
            self.part(what),
            vpc_id=self.vpc.id,
            availability_zone=zone,
            cidr_block=str(cidr),
            map_public_ip_on_launch=False,
            tags=self.tags(**{"Name": f"{self._vpc_name}-{what}", f"kubernetes.io/role/{role}": "1"}),
            opts=self.child(),
        )

    def _associate(self, what: str, subnet: aws.ec2.Subnet, routes: aws.ec2.RouteTable) -> None:
        aws.ec2.RouteTableAssociation(
            self.part(f"{what}-routes"), subnet_id=subnet.id, route_table_id=routes.id, opts=self.child()
        )

    def _create_endpoints(self, region: str, route_table_ids: Sequence[pulumi.Input[str]]) -> None:
        for service in ("s3", "dynamodb"):
            aws.ec2.VpcEndpoint(
                self.part(f"{service}-endpoint"),
                vpc_id=self.vpc.id,
                service_name=f"com.amazonaws.{region}.{service}",
                vpc_endpoint_type="Gateway",
                route_table_ids=route_table_ids,
                tags=self.tags(Name=f"{self._vpc_name}-{service}"),
                opts=self.child(),
            )
