"""Rules between a stack's file and what else is written down: the catalog, the file of the stack below it, the calendar.

Each rule gives lines, none where it holds; a line names file, key, value and remedy. All of them are asked before any resource.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import date

from infra import versions
from infra.catalog import Catalog
from infra.instances import INSTANCE_SHAPES, GpuKind
from infra.naming import LOAD_BALANCER, LOCAL, PROJECT, StackName
from infra.stack_config import ClusterConfig, EdgeConfig, FoundationConfig, LayerConfig, ServingConfig
from infra.stack_config.serving import HOST_IMAGE

MAX_LOAD_BALANCER_NAME = 32
"""Characters (Elastic Load Balancing, read November 2026)."""


def stack_file_name(stack: StackName) -> str:
    """The stack's file as errors show it."""
    return f"stacks/Pulumi.{stack}.yaml"


def faults_of(stack: StackName, catalog: Catalog, config: LayerConfig, cluster: ClusterConfig | None, today: date) -> list[str]:
    """Every broken rule of the stack. `cluster` is what a serving stack runs on; None leaves out what depends on it."""
    match config:
        case FoundationConfig():
            return list(_duties(stack, catalog, config))
        case EdgeConfig():
            return list(_switched_regions(stack, catalog, config))
        case ClusterConfig():
            return [*_zones(stack, catalog, config), *_support(stack, config, today)]
        case ServingConfig():
            return [
                *_classes(stack, catalog, config),
                *_host_only(stack, catalog, config),
                *_name_fits(stack, catalog),
                *_elastic_zones(stack, catalog, config),
                *(_capacity(stack, catalog, config, cluster) if cluster else ()),
            ]


def _key(stack: StackName, path: str) -> str:
    return f"{stack_file_name(stack)}: `{PROJECT}:{path}`"


def _duties(stack: StackName, catalog: Catalog, config: FoundationConfig) -> Iterator[str]:
    """A role trusts its own account alone, so a principal of another could never take it."""
    account_id = catalog.environments[stack.environment].account_id
    for duty, principals in config.duties:
        for principal in principals:
            if principal.split(":")[4] != account_id:
                yield (
                    f"{_key(stack, f'duties.{duty}')} names {principal}, must be of account {account_id}. Name a role of that"
                    " account, which others may take."
                )


def _switched_regions(stack: StackName, catalog: Catalog, config: EdgeConfig) -> Iterator[str]:
    """A check for a region that is misspelt would guard nothing, and nobody would see it."""
    regions = catalog.environments[stack.environment].regions
    given = config.region_switch.health_check_ids if config.region_switch != "none" else {}
    for region in sorted(given.keys() - set(regions)):
        yield (
            f"{_key(stack, 'region_switch.health_check_ids')} names {region!r}, must be one of {', '.join(regions)}. Correct it."
        )


def _zones(stack: StackName, catalog: Catalog, config: ClusterConfig) -> Iterator[str]:
    offered = catalog.regions[stack.region].gpu_zones
    for name, pool in config.reserved_pools.items():
        yield from _offered(stack, f"reserved_pools.{name}", pool.instance_type, offered)
        zones = offered.get(pool.instance_type, ())
        if zones and pool.zone not in zones:
            yield (
                f"{_key(stack, f'reserved_pools.{name}.zone')} is {pool.zone!r}, must be one of {', '.join(zones)}: the catalog's"
                f" `regions.{stack.region}.gpu_zones` offers {pool.instance_type} there alone."
            )


def _elastic_zones(stack: StackName, catalog: Catalog, config: ServingConfig) -> Iterator[str]:
    offered = catalog.regions[stack.region].gpu_zones
    for option, pools in (("on_demand", config.pools.on_demand), ("spot", config.pools.spot)):
        for name, pool in pools.items():
            yield from _offered(stack, f"pools.{option}.{name}", pool.instance_type, offered)


def _offered(stack: StackName, path: str, instance_type: str, offered: dict[str, tuple[str, ...]]) -> Iterator[str]:
    if instance_type not in offered:
        yield (
            f"{_key(stack, f'{path}.instance_type')} is {instance_type}, which {stack.region} does not offer. It has"
            f" {', '.join(offered) or 'none'}; if AWS says otherwise, add it to `regions.{stack.region}.gpu_zones`."
        )


def _support(stack: StackName, config: ClusterConfig, today: date) -> Iterator[str]:
    """A cluster past its standard support costs six times as much, and is upgraded by AWS when it sees fit."""
    ends = versions.KUBERNETES_SUPPORT_ENDS.get(config.kubernetes_version)
    if stack.environment == LOCAL or ends is None:
        return
    if (ends - today).days < versions.SUPPORT_MARGIN_DAYS:
        yield (
            f"{_key(stack, 'kubernetes_version')} is {config.kubernetes_version}, which EKS supports until"
            f" {ends:%-d %B %Y}: in less than {versions.SUPPORT_MARGIN_DAYS} days. Upgrade: docs/operations.md says how."
        )


def _classes(stack: StackName, catalog: Catalog, config: ServingConfig) -> Iterator[str]:
    name = stack.environment
    served = catalog.environments[name].models
    for model_class in sorted(served.keys() - config.engines.keys()):
        yield f"{_key(stack, f'engines.{model_class}')} is missing; the catalog says that {name} serves it. Add it."
    for model_class in sorted(config.engines.keys() - served.keys()):
        yield (
            f"{_key(stack, f'engines.{model_class}')} is not served in {name}. Remove it, or add it to"
            f" `environments.{name}.models`."
        )


def _host_only(stack: StackName, catalog: Catalog, config: ServingConfig) -> Iterator[str]:
    if stack.environment == LOCAL:
        return
    for role, image in (("gateway", config.images.gateway), ("engine", config.images.engine)):
        if image.startswith(HOST_IMAGE):
            yield f"{_key(stack, f'images.{role}')} is {image}, which only {LOCAL} can run. Give an image by its digest."
    if config.gateway.host_ports:
        yield f"{_key(stack, 'gateway.host_ports')} opens ports of this machine, which only {LOCAL} may. Remove it."
    if config.twins:
        yield f"{_key(stack, 'twins')} is true; a twin holds no model, and only {LOCAL} may serve one. Remove it."
    for model_class, name in sorted(catalog.environments[stack.environment].models.items()):
        if catalog.models[name].engine == "twin":
            yield (
                f"{_key(stack, f'engines.{model_class}')} would serve {name}, a twin, which only {LOCAL} may. Give"
                f" `environments.{stack.environment}.models.{model_class}` a model."
            )
    if not config.load_balancer.deregistration_s:
        yield (
            f"{_key(stack, 'load_balancer.deregistration_s')} is 0, so that each rollout cuts streams; only {LOCAL} has no load"
            " balancer before its gateways. Give the seconds that a stream has to finish."
        )


def _name_fits(stack: StackName, catalog: Catalog) -> Iterator[str]:
    name = catalog.names(stack.environment).regionally(catalog.regions[stack.region].code, LOAD_BALANCER)
    if len(name) > MAX_LOAD_BALANCER_NAME:
        yield (
            f"stacks/catalog.yaml: `name_prefix` makes {name!r} the name of a load balancer in {stack}, {len(name)} characters;"
            f" must be at most {MAX_LOAD_BALANCER_NAME}. Shorten it, or the environment's name."
        )


def _capacity(stack: StackName, catalog: Catalog, config: ServingConfig, cluster: ClusterConfig) -> Iterator[str]:
    """Floors fit on what is reserved, growth on what may be added, and nothing is asked of a pool that is not there."""
    models = {
        model_class: catalog.models[catalog.environments[stack.environment].models[model_class]]
        for model_class in config.engines
        if model_class in catalog.environments[stack.environment].models
    }
    reserved = Counter[GpuKind]()
    for pool in cluster.reserved_pools.values():
        reserved[INSTANCE_SHAPES[pool.instance_type].gpu] += pool.num_gpus
    limits = {
        "floor.reserved": ("reserved", reserved, f"`reserved_pools` of {stack_file_name(_cluster_of(stack))}"),
        "max_replicas": ("on-demand", _gpus(config, "on_demand"), "`pools.on_demand`"),
        "overflow_max_replicas and batch_max_replicas": ("spot", _gpus(config, "spot"), "`pools.spot`"),
    }
    for what, (option, available, where) in limits.items():
        wanted = Counter[GpuKind]()
        classes: dict[GpuKind, list[str]] = {}
        for model_class, model in sorted(models.items()):
            num_gpus = _wanted(config, model_class, option) * model.gpus.count if model.gpus else 0
            if model.gpus and num_gpus:
                wanted[model.gpus.kind] += num_gpus
                classes.setdefault(model.gpus.kind, []).append(model_class)
        for kind, num_gpus in wanted.items():
            if num_gpus > available[kind]:
                names = " and ".join(classes[kind])
                yield (
                    f"{_key(stack, 'engines')}: {what} of {names} needs {num_gpus} × {kind} {option}, and there are"
                    f" {available[kind]}. Lower it, or raise {where}."
                )


def _wanted(config: ServingConfig, model_class: str, option: str) -> int:
    """Replicas of a class that must find room on nodes of this purchase option."""
    engines = next(item for name, item in config.engines.items() if name == model_class)
    match option:
        case "reserved":
            return engines.floor.reserved
        case "on-demand":
            return engines.max_replicas - engines.floor.reserved
    return engines.overflow_max_replicas + engines.batch_max_replicas


def _gpus(config: ServingConfig, option: str) -> Counter[GpuKind]:
    pools = config.pools.on_demand if option == "on_demand" else config.pools.spot
    counted = Counter[GpuKind]()
    for pool in pools.values():
        counted[INSTANCE_SHAPES[pool.instance_type].gpu] += pool.num_gpus
    return counted


def _cluster_of(stack: StackName) -> StackName:
    return StackName(stack.environment, "cluster", stack.region)
