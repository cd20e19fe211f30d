"""The region's load balancer: an ALB and the target group that the gateways' pods are put in.

The program owns both, so that their ARNs outlive every object in the cluster; a controller there only registers pods. The HTTPS
listener is not here: its certificate is proved by records in the zone of the edge, a later stack, and edges point one way. So the
edge makes it from the ARNs that this stack exports, and a region is whole before it is open.

Port 80 answers `/health` and refuses all else. It does not redirect: a client that sends its key in the clear must fail loudly.
And it puts the target group to use from the first hour: targets of an unused one are never found healthy, so that gateways would
stay unready behind their readiness gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import timers
from infra.components.component import Component
from infra.naming import StackName
from infra.stack_config.serving import LoadBalancerConfig

HTTP, HTTPS = 80, 443
ANYBODY = "0.0.0.0/0"


@dataclass(frozen=True)
class GatewayLoadBalancerArgs:
    """`name` is that of load balancer and target group."""

    name: str
    config: LoadBalancerConfig
    target_port: int
    vpc_id: pulumi.Input[str]
    vpc_cidr: pulumi.Input[str]
    subnet_ids: pulumi.Input[Sequence[pulumi.Input[str]]]
    pods_security_group_id: pulumi.Input[str]
    """Of nodes and pods; it is opened to the load balancer on `target_port` alone."""


class GatewayLoadBalancer(Component):
    """ALB, security group, target group and plain listener."""

    def __init__(
        self, name: str, args: GatewayLoadBalancerArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("traffic:GatewayLoadBalancer", name, stack, opts)
        self._args = args
        self.load_balancer = aws.lb.LoadBalancer(
            self.part("alb"),
            name=args.name,
            load_balancer_type="application",
            internal=args.config.scheme == "internal",
            subnets=args.subnet_ids,
            security_groups=[self._create_security_group().id],
            idle_timeout=timers.ALB_IDLE_S,
            drop_invalid_header_fields=True,
            desync_mitigation_mode="strictest",
            enable_deletion_protection=True,
            enable_zonal_shift=True,
            tags=self.tags(),
            opts=self.child(protect=True),
        )
        self.target_group = aws.lb.TargetGroup(
            self.part("gateways"),
            name=args.name,
            vpc_id=args.vpc_id,
            target_type="ip",
            protocol="HTTP",
            protocol_version="HTTP1",
            port=args.target_port,
            deregistration_delay=args.config.deregistration_s,
            # Streams last from a second to minutes: served in turn, some gateway would get most of the long ones.
            load_balancing_algorithm_type="least_outstanding_requests",
            health_check={
                "path": timers.ALB_HEALTH.path,
                "protocol": "HTTP",
                "port": "traffic-port",
                "matcher": "200",
                "interval": timers.ALB_HEALTH.period_s,
                "timeout": timers.ALB_HEALTH.timeout_s,
                "healthy_threshold": 2,
                "unhealthy_threshold": timers.ALB_HEALTH.failures,
            },
            tags=self.tags(),
            opts=self.child(),
        )
        self._create_plain_listener()
        self.register_outputs({"dns_name": self.load_balancer.dns_name})

    def _create_security_group(self) -> aws.ec2.SecurityGroup:
        args = self._args
        group = aws.ec2.SecurityGroup(
            self.part("access"),
            name=f"{args.name}-alb",
            description="Clients of the load balancer",
            vpc_id=args.vpc_id,
            tags=self.tags(),
            opts=self.child(),
        )
        for port in (HTTP, HTTPS):
            aws.vpc.SecurityGroupIngressRule(
                self.part(f"from-clients-{port}"),
                security_group_id=group.id,
                cidr_ipv4=args.vpc_cidr if args.config.scheme == "internal" else ANYBODY,
                ip_protocol="tcp",
                from_port=port,
                to_port=port,
                description="Clients",
                tags=self.tags(),
                opts=self.child(),
            )
        aws.vpc.SecurityGroupEgressRule(
            self.part("to-gateways"),
            security_group_id=group.id,
            referenced_security_group_id=args.pods_security_group_id,
            ip_protocol="tcp",
            from_port=args.target_port,
            to_port=args.target_port,
            description="Gateways",
            tags=self.tags(),
            opts=self.child(),
        )
        aws.vpc.SecurityGroupIngressRule(
            self.part("gateways-from-alb"),
            security_group_id=args.pods_security_group_id,
            referenced_security_group_id=group.id,
            ip_protocol="tcp",
            from_port=args.target_port,
            to_port=args.target_port,
            description="Load balancer to gateways",
            tags=self.tags(),
            opts=self.child(),
        )
        return group

    def _create_plain_listener(self) -> None:
        refusal: aws.lb.ListenerDefaultActionArgsDict = {
            "type": "fixed-response",
            "fixed_response": {"content_type": "text/plain", "status_code": "403", "message_body": "HTTPS only"},
        }
        listener = aws.lb.Listener(
            self.part("plain"),
            load_balancer_arn=self.load_balancer.arn,
            port=HTTP,
            protocol="HTTP",
            default_actions=[refusal],
            tags=self.tags(),
            opts=self.child(),
        )
        aws.lb.ListenerRule(
            self.part("plain-health"),
            listener_arn=listener.arn,
            priority=1,
            conditions=[{"path_pattern": {"values": [timers.ALB_HEALTH.path]}}],
            actions=[{"type": "forward", "target_group_arn": self.target_group.arn}],
            tags=self.tags(),
            opts=self.child(),
        )
