"""`<env>.serving.<region>`: gateways, engines, cache, and the rules between them."""

from __future__ import annotations

from functools import partial

import pulumi

from infra import timers
from infra.components.cache.redis_cache import PORT as CACHE_PORT
from infra.components.cache.redis_cache import RedisCache, RedisCacheArgs
from infra.components.workloads import engine_fleet, gateway_fleet
from infra.components.workloads.engine_fleet import EngineFleet, EngineFleetArgs
from infra.components.workloads.gateway_fleet import GatewayFleet, GatewayFleetArgs
from infra.components.workloads.serving_namespace import ServingNamespace
from infra.components.workloads.traffic_rules import TrafficRules
from infra.config import Program
from infra.naming import CONTROL_PATH, ENGINE, GATEWAY, NAMESPACE, StackName
from infra.providers import aws_provider, kubernetes_provider
from infra.stack_config import ServingConfig
from infra.stackref import ClusterOutputs, FoundationOutputs, ServingOutputs, export, read
from serving.settings import EngineSettings, GatewaySettings, JournalSettings, ModelClass, ServedModel, Tables

GATEWAY_STOP = timers.gateway_stop(0)
ENGINE_STOP = timers.base_engine_stop(GATEWAY_STOP)


def build(program: Program[ServingConfig]) -> None:
    """Declares the stack and exports ServingOutputs."""
    stack, environment = program.stack, program.environment
    foundation = read(StackName(stack.environment, "foundation"), FoundationOutputs)
    cluster = read(StackName(stack.environment, "cluster", stack.region), ClusterOutputs)
    in_aws = pulumi.ResourceOptions(provider=aws_provider("aws", stack.region, environment.account_id))
    in_cluster = pulumi.ResourceOptions(
        provider=kubernetes_provider("kubernetes", cluster.apply(lambda outputs: outputs.kubeconfig))
    )

    cache = RedisCache(
        "cache",
        RedisCacheArgs(
            cache=program.names.regionally(program.region.code, "cache"),
            config=program.config.cache,
            vpc_id=cluster.apply(lambda outputs: outputs.vpc_id),
            subnet_ids=cluster.apply(lambda outputs: outputs.private_subnet_ids),
            client_security_group_id=cluster.apply(lambda outputs: outputs.cluster_security_group_id),
            kms_key_arn=foundation.apply(lambda outputs: outputs.regions[stack.region].kms_key_arn),
        ),
        stack,
        in_aws,
    )
    namespace = ServingNamespace("namespace", stack, in_cluster)
    below = pulumi.ResourceOptions.merge(in_cluster, pulumi.ResourceOptions(depends_on=[namespace]))
    TrafficRules("traffic-rules", cluster.apply(lambda outputs: outputs.vpc_cidr), CACHE_PORT, stack, below)
    settings = pulumi.Output.all(foundation, cache.url).apply(lambda known: _gateway_settings(program, *known).model_dump_json())
    images = program.config.images
    GatewayFleet(
        GATEWAY,
        GatewayFleetArgs(program.config.gateway, images.gateway, settings, namespace.priority_classes[GATEWAY], GATEWAY_STOP),
        stack,
        below,
    )
    for model_class in sorted(program.config.engines):
        EngineFleet(
            engine_fleet.fleet_name(model_class),
            EngineFleetArgs(
                model_class=model_class,
                model=program.model(model_class),
                config=program.config.engines[model_class],
                # A twin runs on what the gateway's image has, and needs nothing of vLLM's.
                image=images.gateway if program.model(model_class).engine == "twin" else images.engine,
                settings=foundation.apply(partial(_engine_settings, program, model_class)),
                priority_class=namespace.priority_classes[ENGINE],
                stop=ENGINE_STOP,
            ),
            stack,
            below,
        )
    export(
        ServingOutputs,
        {
            "gateway_service": f"{GATEWAY}.{NAMESPACE}",
            "gateway_port": gateway_fleet.HTTP_PORT,
            "gateway_health_path": timers.READINESS.path,
            "control_path": CONTROL_PATH,
            "load_balancer_arn": "INTERIM",
            "load_balancer_dns_name": "INTERIM",
            "load_balancer_zone_id": "INTERIM",
            "target_group_arn": "INTERIM",
        },
    )


def _gateway_settings(program: Program[ServingConfig], foundation: FoundationOutputs, cache_url: str) -> GatewaySettings:
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
        cache_url=cache_url,
        models=tuple(_served_model(program, model_class) for model_class in sorted(environment.models)),
        price_version=program.catalog.price_version,
        journal=JournalSettings(seal_after_s=program.config.gateway.usage_ships_after_s),
        drain_s=GATEWAY_STOP.drain_s,
    )


def _served_model(program: Program[ServingConfig], model_class: ModelClass) -> ServedModel:
    model = program.model(model_class)
    return ServedModel(
        model_class=model_class,
        aliases=(model.model_name,),
        context_window_tokens=model.context_window_tokens,
        engine_service=f"{engine_fleet.fleet_name(model_class)}.{NAMESPACE}",
        engine_port=engine_fleet.HTTP_PORT,
        max_in_flight_per_engine=model.max_in_flight_per_engine,
        price=model.price,
    )


def _engine_settings(program: Program[ServingConfig], model_class: ModelClass, foundation: FoundationOutputs) -> str:
    """What the engines of a class are told."""
    settings = EngineSettings(
        environment=program.stack.environment,
        region=program.stack.region,
        model_class=model_class,
        registry_table=foundation.tables.registry,
        artifact_bucket=foundation.regions[program.stack.region].artifact_bucket,
        engine=program.model(model_class).engine,
        drain_s=ENGINE_STOP.drain_s,
    )
    return settings.model_dump_json()
