"""Brings regions of the local environment up, from the same program that describes production.

The order, and why: everything that can be refused is refused first (disk, lock, configuration, ports), while nothing runs.
The emulated AWS comes before what is realised on it; data before the processes that read it; the release before the engines
that fetch it; the gateway before its admin API is asked for a key; engines last, as they take longest. Each step leaves
alone what is already as it should be, so `up` after a failure, or after a kill at any point, goes on from there. Regions
that are not named keep running as they are.
"""

from __future__ import annotations

import errno
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from infra import config
from infra.components.cache.redis_cache import PORT as CACHE_PORT
from infra.components.workloads.gateway_fleet import SETTINGS_FILE as GATEWAY_SETTINGS
from infra.embedded import access, edge, faults, furniture, lifecycle, manifests, ports
from infra.embedded import state as files
from infra.embedded.desired import Desired, Service, Workload
from infra.embedded.edge_checks import checks_of
from infra.embedded.engine_watch import EngineWatch
from infra.embedded.graph import Graph
from infra.embedded.graph_json import save_graph
from infra.embedded.progress import Steps
from infra.embedded.realise_aws import Realised, realise_stack, record_only
from infra.embedded.recorder import record
from infra.embedded.report import UpReport
from infra.embedded.state import Instance, State
from infra.recovery.estate import Estate, RegionEstate, save_local
from policies.failover.rotation import CHECK_FAILURES
from serving.errors import UserError
from serving.settings import GatewaySettings, ModelClass
from serving.target import LOCAL, Target, aws_client

if TYPE_CHECKING:
    from serving.models.files import Progress

REPOSITORY = Path(__file__).resolve().parents[2]
AWS_PORT = 4566
PROBE_INDEX = 4094
"""An address of ours that no pod gets, to try ports on."""


@dataclass(frozen=True)
class UpOptions:
    """What the user asked for. No regions means the home region; no offset means that of the time before."""

    state: State
    regions: tuple[str, ...] = ()
    port_offset: int | None = None
    timeout_s: float = 900
    twins: bool = False
    """Every class is served by a twin, no model by vLLM."""


def up(options: UpOptions, steps: Steps) -> UpReport:
    """Brings the regions up and waits until they serve.

    Raises:
        UserError: something the user can mend; whatever had started runs on, and the next `up` goes on from there.
    """
    began = time.monotonic()
    state = options.state
    state.prepare()
    with files.exclusively(state):
        steps.step("Read the program")
        graphs, regions, addresses = _record(options)
        try:
            report = _up(options, steps, graphs, regions, addresses, began + options.timeout_s)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"{error.filename or state.root}: the disk is full", "free some space, then `flotilla up`") from error
    report.took_s = time.monotonic() - began
    return report


def _up(
    options: UpOptions,
    steps: Steps,
    graphs: Mapping[str, Graph],
    regions: Sequence[str],
    cache_addresses: Mapping[str, str],
    deadline: float,
) -> UpReport:
    state = options.state
    foundation, edge = graphs[f"{LOCAL}.foundation"], graphs[f"{LOCAL}.edge"]
    serving = {region: graphs[f"{LOCAL}.serving.{region}"] for region in regions}
    clusters = [graphs[f"{LOCAL}.cluster.{region}"] for region in regions]
    before = state.desired() if state.agent_pid() else Desired()
    instance = _choose_instance(options, serving.values())

    steps.step("Start the emulated AWS")
    faults.heal(state, regions)
    aws = furniture.emulated_aws(state, instance)
    aws_url = furniture.url_of(aws)
    fronts = _fronts(state, regions, aws, instance)
    first = {workload.key: workload for workload in (aws, *fronts.values())}
    others = [workload for workload in before.workloads if workload.key not in first]
    lifecycle.hand_over(state, Desired(workloads=(*first.values(), *others), services=before.services))
    lifecycle.ensure_agent(state)
    lifecycle.wait_for(state, first, deadline)

    realised = Realised()
    for graph in (foundation, *serving.values(), edge):
        steps.step(f"Realise {graph.stack}")
        realise_stack(graph, _clients(aws_url), cache_addresses, realised)
    record_only(clusters, realised)
    desired = _desired(state, before, aws, fronts, serving, edge, instance, realised)
    settings = _gateway_settings(desired)
    published = _publish(_target(aws_url, desired), settings, regions, _sources(options), steps)

    steps.step("Start the gateways")
    lifecycle.hand_over(state, desired)
    engines = _engines(desired, settings.values())
    lifecycle.wait_for(state, {workload.key for workload in desired.workloads} - engines, deadline)
    steps.step("Make the demo tenant's key")
    target = _target(aws_url, desired)
    api_key, is_new_key = access.ensure_key(target, state)
    target = msgspec.structs.replace(target, api_key=api_key)
    access.save(state, target)  # now, as the key is told only once, and engines may take minutes
    save_local(_estate(target, desired, settings), state.root)
    steps.step("Start the engines")
    lifecycle.wait_for(state, engines, deadline, EngineWatch(engines, steps))
    for graph in (foundation, *clusters, *serving.values(), edge):
        save_graph(state.root, graph)
    return UpReport(
        target=target,
        model=_smallest(settings[regions[0]]),
        api_url=_api_url(desired),
        outcomes=Counter(realised.outcomes.values()),
        workloads=_changes(before, desired),
        recorded_only=dict(sorted(realised.recorded_only.items())),
        other_changes=(*published, *(["made a key for tenant demo"] if is_new_key else [])),
    )


def _record(options: UpOptions) -> tuple[dict[str, Graph], list[str], dict[str, str]]:
    """The graphs, the chosen regions with the home region first, and a cache address for every region there is."""
    environment = config.environment_of(config.load_catalog(), LOCAL)
    chosen = set(options.regions or (environment.home_region,))
    stacks = [
        f"{LOCAL}.foundation",
        *(f"{LOCAL}.{layer}.{region}" for layer in ("cluster", "serving") for region in chosen),
        f"{LOCAL}.edge",
    ]
    twins = {stack: {"twins": True} for stack in stacks if options.twins and ".serving." in stack}
    graphs = record(stacks, overrides=twins)
    regions = sorted(chosen, key=lambda region: (region != environment.home_region, environment.regions.index(region)))
    addresses = {
        region: options.state.address(furniture.FIRST_CACHE_INDEX + index) for index, region in enumerate(environment.regions)
    }
    return graphs, regions, addresses


def _choose_instance(options: UpOptions, serving: Iterable[Graph]) -> Instance:
    """Ports, kept from before where that is possible, every one of them checked.

    Raises:
        UserError: one is taken.
    """
    state, serving = options.state, list(serving)
    before = state.instance()
    status = state.status() if state.agent_pid() else None
    offset = before.port_offset if options.port_offset is None else options.port_offset
    services = status.services if status else ()
    ours = {address for service in services for address in service.host_addresses.values()}
    wanted = {port: purpose for graph in serving for port, purpose in manifests.host_ports(graph, offset).items()}
    if len(serving) > 1:
        wanted[furniture.EDGE_PORT + offset] = "the edge"
    ports.check_host_ports({port: purpose for port, purpose in wanted.items() if f"{ports.HOST}:{port}" not in ours})
    aws_port = before.aws_port
    if status is None:
        ports.check_pod_ports(state.address(PROBE_INDEX), {CACHE_PORT}.union(*map(manifests.pod_ports, serving)))
        aws_port = ports.free_port(state.address(furniture.AWS_INDEX), before.aws_port or AWS_PORT)
    instance = Instance(port_offset=offset, aws_port=aws_port)
    if instance != before:
        files.write_json(state.instance_file, instance)
    return instance


def _fronts(state: State, regions: Iterable[str], aws: Workload, instance: Instance) -> dict[str, Workload]:
    """Each region's own way to the emulated AWS."""
    known = config.environment_of(config.load_catalog(), LOCAL).regions
    return {region: furniture.front_of(state, region, known.index(region), aws, instance) for region in regions}


def _clients(aws_url: str) -> Callable[[str, str], Any]:
    return functools.cache(lambda service, region: aws_client(service, region, aws_url))


def _desired(
    state: State,
    before: Desired,
    aws: Workload,
    fronts: Mapping[str, Workload],
    serving: Mapping[str, Graph],
    edge: Graph,
    instance: Instance,
    realised: Realised,
) -> Desired:
    """What to run: the regions brought up now, and those that run already and were not named."""
    workloads = [aws, *fronts.values(), *realised.caches]
    services: list[Service] = []
    for region, graph in serving.items():
        host_env = {
            "AWS_ENDPOINT_URL": furniture.url_of(fronts[region]),
            "AWS_ACCESS_KEY_ID": LOCAL,
            "AWS_SECRET_ACCESS_KEY": LOCAL,  # the emulated AWS takes any
            "AWS_DEFAULT_REGION": region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "FLOTILLA_ENDPOINTS_DIR": str(state.endpoints / region),
        }
        surroundings = manifests.Surroundings(region, REPOSITORY, host_env, instance.port_offset)
        more_workloads, more_services = manifests.render(graph, surroundings, realised.lookup)
        workloads += more_workloads
        services += more_services
    kept = {"", *serving}
    workloads += [workload for workload in before.workloads if workload.region not in kept]
    services += [service for service in before.services if service.region not in kept]
    addresses = {region: its["http"] for region, its in _addresses(services).items()}
    if len(addresses) > 1:
        workload, service = furniture.edge_before(state, addresses, checks_of(edge), instance.port_offset)
        workloads.append(workload)
        services.append(service)
    return Desired(workloads=tuple(workloads), services=tuple(services))


def _addresses(services: Iterable[Service]) -> dict[str, dict[str, str]]:
    """Where each region's gateways answer on 127.0.0.1, by region and port name; the edge's under no region's name."""
    addresses: dict[str, dict[str, str]] = {}
    for service in services:
        for name, port in service.host_ports.items():
            addresses.setdefault(service.region, {})[name] = f"{ports.HOST}:{port}"
    return addresses


def _gateway_settings(desired: Desired) -> dict[str, GatewaySettings]:
    """What the gateways of each region are told."""
    found = {}
    for workload in desired.workloads:
        for volume in workload.template.volumes.values():
            if GATEWAY_SETTINGS in volume.files:
                found[workload.region] = GatewaySettings.model_validate_json(volume.files[GATEWAY_SETTINGS])
    return found


def _target(aws_url: str, desired: Desired) -> Target:
    return access.target_of(aws_url, _gateway_settings(desired), _addresses(desired.services))


def _estate(target: Target, desired: Desired, settings: Mapping[str, GatewaySettings]) -> Estate:
    """What `flotilla failover` needs to know of the regions that are up; it asks each region's AWS by that region's own way."""
    fronts = {each.region: furniture.url_of(each) for each in desired.workloads if each.name == furniture.FRONT}
    regions = {
        name: RegionEstate(
            name=name,
            url=region.base_url.removesuffix("/v1"),
            artifact_bucket=region.artifact_bucket,
            archive_bucket=region.archive_bucket,
            aws_url=fronts[name],
        )
        for name, region in target.regions.items()
    }
    some = settings[next(iter(regions))]
    committed: dict[str, int] = {name: its.committed_req_per_min for name, its in config.load_catalog().classes.items()}
    # The edge of one machine asks by its own period, and keeps nobody on a region as a resolver does.
    moves_within_s = CHECK_FAILURES * edge.CHECK_PERIOD_S
    return Estate(LOCAL, regions, some.tables.failover, some.tables.registry, _api_url(desired), committed, moves_within_s)


def _api_url(desired: Desired) -> str:
    """The one address of all regions; empty where no edge stands before them."""
    its = _addresses(desired.services).get("")
    return f"http://{its['http']}" if its else ""


def _engines(desired: Desired, settings: Iterable[GatewaySettings]) -> set[str]:
    """Keys of the workloads that the gateways send requests to."""
    names = {model.engine_service for its in settings for model in its.models}
    return {key for service in desired.services if f"{service.name}.{service.namespace}" in names for key in service.workloads}


def _sources(options: UpOptions) -> dict[str, str]:
    """Where each class's release comes from, as the catalog says."""
    catalog = config.load_catalog()
    environment = config.environment_of(catalog, LOCAL)
    served = {**environment.models, **(environment.twins if options.twins else {})}
    return {model_class: catalog.models[model].source for model_class, model in served.items()}


def _publish(
    target: Target, settings: Mapping[str, GatewaySettings], regions: Sequence[str], sources: Mapping[str, str], steps: Steps
) -> list[str]:
    """Sees to a release of every class that is served; what was new. Regions get it from the first by replication."""
    from serving.models.publish import ensure_published

    changes = []
    for model_class in sorted({model.model_class for its in settings.values() for model in its.models}):

        def show(progress: Progress, model_class: str = model_class) -> None:
            steps.step(
                f"Release of {model_class}: {progress.stage}", progress.done, progress.total, progress.unit, progress.detail
            )

        steps.step(f"Release of {model_class}")
        release = ensure_published(target, regions[0], model_class, source=sources[model_class], on_progress=show)
        if release.is_new or release.uploaded_bytes:
            changes.append(f"published release {release.release_id} of {model_class}")
    return changes


def _smallest(settings: GatewaySettings) -> ModelClass:
    """The class that the printed lines ask."""
    served = {model.model_class for model in settings.models}
    return next(model_class for model_class in get_args(ModelClass) if model_class in served)


def _changes(before: Desired, after: Desired) -> dict[str, str]:
    """What became of each workload."""
    old = {workload.key: workload for workload in before.workloads}
    new = {workload.key: workload for workload in after.workloads}
    changes = dict.fromkeys(old.keys() - new.keys(), "stopped")
    for key, workload in new.items():
        changes[key] = "started" if key not in old else "unchanged" if workload == old[key] else "changed"
    return dict(sorted(changes.items()))
