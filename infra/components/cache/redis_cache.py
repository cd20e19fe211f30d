"""The region's cache: Valkey, or Redis, on ElastiCache. Nothing in it must survive, so it is never copied to another region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
import pulumi_aws as aws

from infra import versions
from infra.components.component import Component
from infra.naming import StackName
from infra.stack_config.serving import CacheConfig

PORT = 6379


@dataclass(frozen=True)
class RedisCacheArgs:
    """`client_security_group_id` is the group of those who may connect."""

    cache: str
    config: CacheConfig
    vpc_id: pulumi.Input[str]
    subnet_ids: pulumi.Input[Sequence[pulumi.Input[str]]]
    client_security_group_id: pulumi.Input[str]
    kms_key_arn: pulumi.Input[str]


class RedisCache(Component):
    """An ElastiCache replication group, with failover where it has a replica."""

    def __init__(self, name: str, args: RedisCacheArgs, stack: StackName, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("cache:RedisCache", name, stack, opts)
        config = args.config
        has_replica = config.num_replicas > 0
        engine_version, parameter_group = versions.CACHE_ENGINES[config.engine]
        subnets = aws.elasticache.SubnetGroup(
            self.part("subnets"), name=args.cache, subnet_ids=args.subnet_ids, tags=self.tags(), opts=self.child()
        )
        self.group = aws.elasticache.ReplicationGroup(
            self.part("group"),
            replication_group_id=args.cache,
            description="Limits and shared state of a region; disposable",
            engine=config.engine,
            engine_version=engine_version,
            parameter_group_name=parameter_group,
            node_type=config.node_type,
            port=PORT,
            num_cache_clusters=1 + config.num_replicas,
            automatic_failover_enabled=has_replica,
            multi_az_enabled=has_replica,
            at_rest_encryption_enabled=True,
            kms_key_id=args.kms_key_arn,
            transit_encryption_enabled=config.transit_encryption,
            snapshot_retention_limit=0,
            subnet_group_name=subnets.name,
            security_group_ids=[self._create_security_group(args).id],
            tags=self.tags(),
            opts=self.child(),
        )
        scheme = "rediss" if config.transit_encryption else "redis"
        self.url = pulumi.Output.concat(scheme, "://", self.group.primary_endpoint_address, f":{PORT}")
        """Where clients connect."""
        self.register_outputs({"url": self.url})

    def _create_security_group(self, args: RedisCacheArgs) -> aws.ec2.SecurityGroup:
        group = aws.ec2.SecurityGroup(
            self.part("access"),
            name=args.cache,
            description="Who may reach the cache",
            vpc_id=args.vpc_id,
            tags=self.tags(),
            opts=self.child(),
        )
        aws.vpc.SecurityGroupIngressRule(
            self.part("from-cluster"),
            security_group_id=group.id,
            referenced_security_group_id=args.client_security_group_id,
            ip_protocol="tcp",
            from_port=PORT,
            to_port=PORT,
            description="Pods of the cluster",
            tags=self.tags(),
            opts=self.child(),
        )
        return group
