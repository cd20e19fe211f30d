"""`<env>.serving.<region>`: all that lives in the cluster, and the load balancer and the cache beside it.

Controllers come first, as no object of a kind that they define can exist before them; and they go last when the stack is
destroyed, so that bindings and nodes are taken down by those who made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import pulumi

from infra import timers, versions
from infra.components.cache.redis_cache import PORT as CACHE_PORT
from infra.components.cache.redis_cache import RedisCache, RedisCacheArgs
from infra.components.controllers.cluster_controllers import ClusterControllers, ClusterControllersArgs
from infra.components.drills.experiment import Experiment, ExperimentArgs
from infra.components.drills.plans import Place, plan_of
from infra.components.gpu.gpu_support import GpuSupport
from infra.components.gpu.node_pools import ElasticNodePools, ElasticNodePoolsArgs
from infra.components.observability.monitoring import Monitoring
from infra.components.observability.scrape_targets import ScrapeTargets
from infra.components.observability.usage_alerts import UsageAlerts
from infra.components.traffic.load_balancer import GatewayLoadBalancer, GatewayLoadBalancerArgs
from infra.components.traffic.target_binding import TargetBinding
from infra.components.workloads import engine_fleet, gateway_fleet
from infra.components.workloads.engine_fleet import EngineFleet, EngineFleetArgs, EngineService
from infra.components.workloads.engine_scaling import fleet_sizes, scaling_limits, scaling_policy
from infra.components.workloads.fleets import Fleet, service_name
from infra.components.workloads.gateway_fleet import GatewayFleet, GatewayFleetArgs
from infra.components.workloads.journal_storage import JournalStorage
from infra.components.workloads.serving_namespace import ServingNamespace
from infra.components.workloads.traffic_rules import TrafficRules
from infra.config import Program
from infra.naming import CONTROL_PATH, GATEWAY, LOAD_BALANCER, NAMESPACE, REGION_HEALTH_PATH, StackName
from infra.providers import aws_provider, kubernetes_provider
from infra.stack_config import ServingConfig
from infra.stack_config.serving import HOST_IMAGE, Drill
from infra.stackref import ClusterOutputs, FoundationOutputs, ServingOutputs, export, read
from infra.timers import Stop
from serving.settings import EngineSettings, GatewaySettings, JournalSettings, ModelClass, Price, Scaling, ServedModel, Tables


def build(program: Program[ServingConfig]) -> None:
    """Declares the stack and exports ServingOutputs."""
    region = _Region(program)
    cache = region.create_cache()
    load_balancer = region.create_load_balancer()
    for drill in sorted(program.config.drills.templates):
        region.create_drill(drill, load_balancer)
    controllers = region.create_controllers()
    region.create_nodes([controllers])
    monitoring = region.create_monitoring()
    region.create_workloads(cache, load_balancer, [controllers, monitoring])
    export(
        ServingOutputs,
        {
            "gateway_service": f"{GATEWAY}.{NAMESPACE}",
            "gateway_port": gateway_fleet.HTTP_PORT,
            "gateway_health_path": timers.ALB_HEALTH.path,
            "region_health_path": REGION_HEALTH_PATH,
            "control_path": CONTROL_PATH,
            "load_balancer_arn": load_balancer.load_balancer.arn,
            "load_balancer_dns_name": load_balancer.load_balancer.dns_name,
            "load_balancer_zone_id": load_balancer.load_balancer.zone_id,
            "target_group_arn": load_balancer.target_group.arn,
        },
    )


class _Region:
    """The stack's parts, each made from the configuration and what earlier stacks export."""

    def __init__(self, program: Program[ServingConfig]) -> None:
        stack = program.stack
        self._program = program
        self._stack = stack
        self._config = program.config
        self._foundation = read(StackName(stack.environment, "foundation"), FoundationOutputs)
        self._cluster = read(StackName(stack.environment, "cluster", stack.region), ClusterOutputs)
        self._in_aws = pulumi.ResourceOptions(provider=aws_provider("aws", stack.region, program.environment.account_id))
        self._provider = kubernetes_provider("kubernetes", self._cluster.apply(lambda outputs: outputs.kubeconfig))

    def _in_cluster(self, after: Sequence[pulumi.Resource] = ()) -> pulumi.ResourceOptions:
        return pulumi.ResourceOptions(provider=self._provider, depends_on=list(after))

    def _name(self, what: str) -> str:
        return self._program.names.regionally(self._program.region.code, what)

    @property
    def _kms_key_arn(self) -> pulumi.Output[str]:
        return self._foundation.apply(lambda outputs: outputs.regions[self._stack.region].kms_key_arn)

    def create_cache(self) -> RedisCache:
        return RedisCache(
            "cache",
            RedisCacheArgs(
                cache=self._name("cache"),
                config=self._config.cache,
                vpc_id=self._cluster.apply(lambda outputs: outputs.vpc_id),
                subnet_ids=self._cluster.apply(lambda outputs: outputs.private_subnet_ids),
                client_security_group_id=self._cluster.apply(lambda outputs: outputs.cluster_security_group_id),
                kms_key_arn=self._kms_key_arn,
            ),
            self._stack,
            self._in_aws,
        )

    def create_load_balancer(self) -> GatewayLoadBalancer:
        is_internal = self._config.load_balancer.scheme == "internal"
        return GatewayLoadBalancer(
            "load-balancer",
            GatewayLoadBalancerArgs(
                name=self._name(LOAD_BALANCER),
                config=self._config.load_balancer,
                target_port=gateway_fleet.HTTP_PORT,
                vpc_id=self._cluster.apply(lambda outputs: outputs.vpc_id),
                vpc_cidr=self._cluster.apply(lambda outputs: outputs.vpc_cidr),
                subnet_ids=self._cluster.apply(
                    lambda outputs: outputs.private_subnet_ids if is_internal else outputs.public_subnet_ids
                ),
                pods_security_group_id=self._cluster.apply(lambda outputs: outputs.cluster_security_group_id),
            ),
            self._stack,
            self._in_aws,
        )

    def create_drill(self, drill: Drill, load_balancer: GatewayLoadBalancer) -> None:
        program, stack = self._program, self._stack
        place = Place(
            stack=stack,
            account_id=program.environment.account_id,
            names=program.names,
            zones=program.region.availability_zones,
            other_regions=[region for region in program.environment.regions if region != stack.region],
            vpc_id=self._cluster.apply(lambda outputs: outputs.vpc_id),
        )
        Experiment(
            drill,
            ExperimentArgs(
                drill_name=self._name(drill),
                plan=plan_of(drill, place),
                account_id=program.environment.account_id,
                region=stack.region,
                load_balancer=load_balancer.load_balancer.arn_suffix,
                target_group=load_balancer.target_group.arn_suffix,
                permissions_boundary_arn=self._foundation.apply(lambda outputs: outputs.permissions_boundary_arn),
                is_meant_for_production=self._config.drills.in_production,
            ),
            stack,
            self._in_aws,
        )

    def create_controllers(self) -> ClusterControllers:
        return ClusterControllers(
            "controllers",
            ClusterControllersArgs(
                region=self._stack.region,
                cluster_name=self._cluster.apply(lambda outputs: outputs.cluster_name),
                cluster_endpoint=self._cluster.apply(lambda outputs: outputs.cluster_endpoint),
                vpc_id=self._cluster.apply(lambda outputs: outputs.vpc_id),
                interruption_queue=self._cluster.apply(lambda outputs: outputs.karpenter.interruption_queue),
            ),
            self._stack,
            self._in_cluster(),
        )

    def create_nodes(self, after: Sequence[pulumi.Resource]) -> None:
        GpuSupport("gpu-support", self._stack, self._in_cluster())
        ElasticNodePools(
            "node-pools",
            ElasticNodePoolsArgs(
                pools=self._config.pools,
                zones=self._program.region.gpu_zones,
                image_alias=self._cluster.apply(lambda outputs: versions.node_image_alias(outputs.kubernetes_version)),
                instance_profile=self._cluster.apply(lambda outputs: outputs.karpenter.instance_profile_name),
                subnet_ids=self._cluster.apply(lambda outputs: outputs.private_subnet_ids),
                security_group_id=self._cluster.apply(lambda outputs: outputs.cluster_security_group_id),
            ),
            self._stack,
            self._in_cluster(after),
        )

    def create_monitoring(self) -> Monitoring:
        monitoring = Monitoring("monitoring", self._stack, self._in_cluster())
        ScrapeTargets("scrape-targets", self._stack, self._in_cluster([monitoring]))
        UsageAlerts("usage-alerts", self._stack, self._in_cluster([monitoring]))
        return monitoring

    def create_workloads(self, cache: RedisCache, load_balancer: GatewayLoadBalancer, after: Sequence[pulumi.Resource]) -> None:
        config, stack = self._config, self._stack
        namespace = ServingNamespace("namespace", stack, self._in_cluster())
        storage = JournalStorage("journal-storage", self._kms_key_arn, stack, self._in_cluster())
        rules = TrafficRules(
            "traffic-rules",
            self._cluster.apply(lambda outputs: outputs.vpc_cidr),
            CACHE_PORT,
            stack,
            self._in_cluster([namespace]),
        )
        below = self._in_cluster([namespace, storage, rules, *after])
        gateway_stop = timers.gateway_stop(config.load_balancer.deregistration_s)
        known = pulumi.Output.all(self._foundation, cache.url)
        settings = known.apply(lambda known: _gateway_settings(self._program, gateway_stop, *known).model_dump_json())
        GatewayFleet(
            GATEWAY,
            GatewayFleetArgs(
                config.gateway, self._image(config.images.gateway), settings, namespace.priority_classes[GATEWAY], gateway_stop
            ),
            stack,
            below,
        )
        # Beside the gateways, not after them: they are not ready before the load balancer has found them healthy.
        binding = self._in_cluster([namespace, *after])
        TargetBinding("target-binding", load_balancer.target_group.arn, gateway_fleet.HTTP_PORT, stack, binding)
        for model_class in sorted(config.engines):
            self._create_engines(model_class, gateway_stop, namespace, below)

    def _create_engines(
        self, model_class: ModelClass, gateway_stop: Stop, namespace: ServingNamespace, below: pulumi.ResourceOptions
    ) -> None:
        model, config = self._program.model(model_class), self._config.engines[model_class]
        images = self._config.images
        sizes = fleet_sizes(
            model_class, config, scaling_policy(model_class, model, self._program.catalog.classes[model_class], config)
        )
        for service in sorted({fleet.service for fleet in sizes}):
            EngineService(service, model_class, model, self._stack, below)
        for fleet, size in sizes.items():
            stop = fleet.stop(gateway_stop)
            EngineFleet(
                fleet.name,
                EngineFleetArgs(
                    fleet=fleet,
                    model=model,
                    config=config,
                    size=size,
                    # A twin runs on what the gateway's image has, and needs nothing of vLLM's.
                    image=self._image(images.gateway if model.engine == "twin" else images.engine),
                    settings=self._engine_settings(fleet, stop),
                    priority_class=namespace.priority_classes[fleet.priority],
                    stop=stop,
                ),
                self._stack,
                below,
            )

    def _engine_settings(self, fleet: Fleet, stop: Stop) -> pulumi.Output[str]:
        return self._foundation.apply(lambda outputs: _engine_settings(self._program, fleet, stop, outputs).model_dump_json())

    def _image(self, image: str) -> pulumi.Input[str]:
        """The image's whole name. One of this machine has no other."""
        if image.startswith(HOST_IMAGE):
            return image
        return self._foundation.apply(lambda outputs: f"{outputs.regions[self._stack.region].image_repository}@{image}")


def _gateway_settings(
    program: Program[ServingConfig], stop: Stop, foundation: FoundationOutputs, cache_url: str
) -> GatewaySettings:
    """What the region's gateways are told."""
    environment, region = program.environment, program.stack.region
    return GatewaySettings(
        environment=program.stack.environment,
        region=region,
        home_region=environment.home_region,
        tables=Tables.model_validate(foundation.tables.model_dump(include=set(Tables.model_fields))),
        secrets=foundation.secrets,
        artifact_bucket=foundation.regions[region].artifact_bucket,
        archive_bucket=foundation.regions[region].archive_bucket,
        body_bucket=foundation.regions[region].body_bucket,
        cache_url=cache_url,
        models=tuple(_served_model(program, model_class) for model_class in sorted(environment.models)),
        journal=JournalSettings(seal_after_s=program.config.gateway.usage_ships_after_s),
        drain_s=stop.drain_s,
        hedging=program.config.gateway.hedging,
        scaling_every_s=program.config.gateway.scaling_every_s,
        workers=program.config.gateway.workers,
    )


def _served_model(program: Program[ServingConfig], model_class: ModelClass) -> ServedModel:
    model, config = program.model(model_class), program.config.engines.get(model_class)
    scaling = None
    if config is not None and scaling_limits(config).is_elastic:
        policy = scaling_policy(model_class, model, program.catalog.classes[model_class], config)
        scaling = Scaling(policy=policy, limits=scaling_limits(config))
    return ServedModel(
        model_class=model_class,
        aliases=(model.model_name,),
        context_window_tokens=model.context_window_tokens,
        engine_service=f"{service_name(model_class)}.{NAMESPACE}",
        engine_port=engine_fleet.HTTP_PORT,
        max_in_flight_per_engine=model.max_in_flight_per_engine,
        prices=tuple(Price(**asdict(price)) for price in program.tariffs.price_list(program.model_name(model_class))),
        scaling=scaling,
    )


def _engine_settings(program: Program[ServingConfig], fleet: Fleet, stop: Stop, foundation: FoundationOutputs) -> EngineSettings:
    """What the engines of a fleet are told."""
    return EngineSettings(
        environment=program.stack.environment,
        region=program.stack.region,
        model_class=fleet.model_class,
        registry_table=foundation.tables.registry,
        artifact_bucket=foundation.regions[program.stack.region].artifact_bucket,
        engine=program.model(fleet.model_class).engine,
        drain_s=stop.drain_s,
    )
