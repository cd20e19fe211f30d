"""The Kubernetes objects of a recorded serving stack as workloads and services of the node agent.

Deployments, StatefulSets, Services, ConfigMaps and Secrets are realised; a claim is a folder that stays. Everything else is
recorded only. What a pod's specification says and one machine cannot honour in kind (security contexts, resources, node
choice, service accounts) is passed over: processes here run as the user who started them. A field whose meaning we would
have to guess is refused by name.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.components.workloads.gateway_fleet import HOST_PORTS
from infra.embedded.desired import Action, Container, Mount, Probe, Service, Template, Volume, Workload
from infra.embedded.folders import FIELDS
from infra.embedded.graph import Graph, Resource, substitute
from infra.embedded.scaled_objects import SCALED_OBJECT, scaled
from infra.stack_config.serving import HOST_IMAGE
from serving.errors import UserError

DEPLOYMENT, STATEFUL_SET = "kubernetes:apps/v1:Deployment", "kubernetes:apps/v1:StatefulSet"
SERVICE, CONFIG_MAP, SECRET = "kubernetes:core/v1:Service", "kubernetes:core/v1:ConfigMap", "kubernetes:core/v1:Secret"
CLAIM = "kubernetes:core/v1:PersistentVolumeClaim"
REALISED_TYPES = (DEPLOYMENT, STATEFUL_SET, SERVICE, CONFIG_MAP, SECRET, CLAIM, SCALED_OBJECT)
Lookup = Callable[[str, str], Any]


class _RefusedError(Exception):
    """A field that cannot be honoured; the message names it."""


@dataclass(frozen=True)
class Surroundings:
    """What this machine adds to every container of a region."""

    region: str
    repository: Path
    """Where `host:` images lie."""
    host_env: Mapping[str, str]
    port_offset: int = 0


@dataclass(frozen=True)
class _Objects:
    """The ConfigMaps and Secrets of a stack: by kind, namespace and name, their files."""

    files: Mapping[tuple[str, str, str], dict[str, str]]

    def get(self, kind: str, namespace: str, name: str) -> dict[str, str]:
        try:
            return self.files[kind, namespace, name]
        except KeyError:
            raise _RefusedError(f"{kind.rpartition(':')[2]} {namespace}/{name}, which the stack does not have") from None


def render(graph: Graph, surroundings: Surroundings, lookup: Lookup) -> tuple[list[Workload], list[Service]]:
    """What the stack wants to run. `lookup` answers the tokens of other resources.

    Raises:
        UserError: a pod asks for something that this machine cannot honour; the message names the resource and the field.
    """
    objects = _Objects(dict(_files(graph, lookup)))
    workloads: list[Workload] = []
    labels: dict[str, Mapping[str, str]] = {}
    for resource in graph.of_type(DEPLOYMENT, STATEFUL_SET):
        try:
            workload = _workload(resource, surroundings, objects, lookup)
        except _RefusedError as error:
            raise UserError(f"{resource.urn}: {error} cannot be honoured on one machine", "leave it out of local") from error
        workloads.append(workload)
        labels[workload.key] = resource.inputs["spec"]["template"]["metadata"].get("labels", {})

    workloads = scaled(workloads, graph)

    def service(resource: Resource) -> Service:
        namespace, _ = _identity(resource)
        wanted = (resource.inputs["spec"].get("selector") or {}).items()
        behind = [
            workload for workload in workloads if workload.namespace == namespace and wanted <= labels[workload.key].items()
        ]
        return _service(resource, surroundings, behind)

    return workloads, [service(resource) for resource in graph.of_type(SERVICE)]


def host_ports(graph: Graph, offset: int) -> dict[int, str]:
    """The ports of 127.0.0.1 that the stack's Services ask for, and what for, known before anything is realised."""
    wanted: dict[int, str] = {}
    for service in graph.of_type(SERVICE):
        namespace, name = _identity(service)
        wanted |= dict.fromkeys(_host_ports(service, offset).values(), f"Service {namespace}/{name} of {graph.stack}")
    return wanted


def pod_ports(graph: Graph) -> set[int]:
    """The ports that the stack's pods listen on, each pod at its own address."""
    pods = [resource.inputs["spec"]["template"]["spec"] for resource in graph.of_type(DEPLOYMENT, STATEFUL_SET)]
    containers = [container for pod in pods for container in pod["containers"]]
    return {int(port["containerPort"]) for container in containers for port in container.get("ports") or ()}


def _files(graph: Graph, lookup: Lookup) -> Iterator[tuple[tuple[str, str, str], dict[str, str]]]:
    for resource in graph.of_type(CONFIG_MAP, SECRET):
        namespace, name = _identity(resource)
        data = dict(substitute(resource.inputs.get("stringData" if resource.type == SECRET else "data") or {}, lookup))
        if resource.type == SECRET:
            encoded = substitute(resource.inputs.get("data") or {}, lookup)
            data |= {key: base64.b64decode(value).decode() for key, value in encoded.items()}
        yield (resource.type, namespace, name), data


def _workload(resource: Resource, surroundings: Surroundings, objects: _Objects, lookup: Lookup) -> Workload:
    namespace, name = _identity(resource)
    spec = resource.inputs["spec"]
    replicas = int(spec.get("replicas", 1))
    surge, unavailable = 1, 0
    if resource.type == DEPLOYMENT:
        strategy = spec.get("strategy") or {}
        rolling = strategy.get("rollingUpdate") or {}
        is_recreate = strategy.get("type") == "Recreate"
        surge = _share("maxSurge", 0 if is_recreate else rolling.get("maxSurge", 1))
        unavailable = _share("maxUnavailable", max(1, replicas) if is_recreate else rolling.get("maxUnavailable", 0))
        if surge == unavailable == 0:
            raise _RefusedError("`strategy.rollingUpdate` with neither surge nor unavailability")
    return Workload(
        region=surroundings.region,
        namespace=namespace,
        name=name,
        kind="Deployment" if resource.type == DEPLOYMENT else "StatefulSet",
        replicas=replicas,
        template=_template(spec, f"{surroundings.region}/{namespace}", surroundings, objects, lookup),
        max_surge=surge,
        max_unavailable=unavailable,
        is_parallel=spec.get("podManagementPolicy") == "Parallel",
    )


def _template(spec: Mapping[str, Any], where: str, surroundings: Surroundings, objects: _Objects, lookup: Lookup) -> Template:
    pod = spec["template"]["spec"]
    if pod.get("initContainers"):
        raise _RefusedError("`initContainers`")
    namespace = where.rpartition("/")[2]
    volumes = {volume["name"]: _volume(volume, where, objects) for volume in pod.get("volumes") or ()}
    for claim in spec.get("volumeClaimTemplates") or ():
        name = claim["metadata"]["name"]
        volumes[name] = Volume(kind="retained", key=f"{where}/{name}-{{pod}}")
    containers = [_container(container, namespace, volumes, surroundings, objects, lookup) for container in pod["containers"]]
    return Template(containers=tuple(containers), volumes=volumes, grace_s=pod.get("terminationGracePeriodSeconds", 30))


def _volume(volume: Mapping[str, Any], where: str, objects: _Objects) -> Volume:
    namespace = where.rpartition("/")[2]
    match volume:
        case {"configMap": source}:
            return Volume(kind="files", files=_selected(objects.get(CONFIG_MAP, namespace, source["name"]), source))
        case {"secret": source}:
            return Volume(kind="files", files=_selected(objects.get(SECRET, namespace, source["secretName"]), source))
        case {"persistentVolumeClaim": source}:
            return Volume(kind="retained", key=f"{where}/{source['claimName']}")
        case {"emptyDir": _}:
            return Volume(kind="scratch")
        case {"projected": {"sources": [{"serviceAccountToken": _}, *_]}}:
            return Volume(kind="files", files={})  # there is no API to show a token to
        case _:
            raise _RefusedError(f"the kind of volume `{volume['name']}`")


def _selected(files: dict[str, str], source: Mapping[str, Any]) -> dict[str, str]:
    return {item["path"]: files[item["key"]] for item in source["items"]} if source.get("items") else files


def _container(
    container: Mapping[str, Any],
    namespace: str,
    volumes: Mapping[str, Volume],
    surroundings: Surroundings,
    objects: _Objects,
    lookup: Lookup,
) -> Container:
    name, image = container["name"], str(container.get("image", ""))
    if not image.startswith(HOST_IMAGE):
        raise _RefusedError(f"image `{image}` of container `{name}` (images of local are `{HOST_IMAGE}<environment>`)")
    venv = surroundings.repository / image.removeprefix(HOST_IMAGE)
    if not (venv / "bin").is_dir():
        raise UserError(f"{venv}: no such environment, but container `{name}` runs in it", "set it up with `make setup`")
    command = substitute([*(container.get("command") or ()), *(container.get("args") or ())], lookup)
    if not container.get("command"):
        raise _RefusedError(f"container `{name}` without `command`")
    mounts = tuple(
        Mount(path=mount["mountPath"], volume=mount["name"], sub_path=mount.get("subPath", ""))
        for mount in container.get("volumeMounts") or ()
    )
    for mount in mounts:
        if mount.volume not in volumes:
            raise _RefusedError(f"volume `{mount.volume}`, which container `{name}` mounts and the pod does not have,")
    ports = {port["name"]: int(port["containerPort"]) for port in container.get("ports") or () if "name" in port}
    pre_stop = (container.get("lifecycle") or {}).get("preStop")
    return Container(
        name=name,
        command=tuple(command),
        venv=str(venv / "bin"),
        env=dict(_environment(container, namespace, objects, lookup)),
        host_env=dict(surroundings.host_env),
        mounts=mounts,
        ports=ports,
        startup=_probe(container.get("startupProbe"), ports),
        readiness=_probe(container.get("readinessProbe"), ports),
        liveness=_probe(container.get("livenessProbe"), ports),
        pre_stop=_action(pre_stop, ports) if pre_stop else None,
    )


def _environment(container: Mapping[str, Any], namespace: str, objects: _Objects, lookup: Lookup) -> Iterator[tuple[str, str]]:
    for source in container.get("envFrom") or ():
        raise _RefusedError(f"`envFrom` of container `{container['name']}` ({', '.join(source)})")
    for variable in container.get("env") or ():
        match variable.get("valueFrom"):
            case None:
                yield variable["name"], str(substitute(variable.get("value", ""), lookup))
            case {"fieldRef": {"fieldPath": field}} if field in FIELDS:
                yield variable["name"], f"{{field:{field}}}"
            case {"configMapKeyRef": source}:
                yield variable["name"], objects.get(CONFIG_MAP, namespace, source["name"])[source["key"]]
            case {"secretKeyRef": source}:
                yield variable["name"], objects.get(SECRET, namespace, source["name"])[source["key"]]
            case _:
                raise _RefusedError(f"`valueFrom` of variable `{variable['name']}`")


def _probe(probe: Mapping[str, Any] | None, ports: Mapping[str, int]) -> Probe | None:
    if not probe:
        return None
    default = Probe(action=_action(probe, ports))
    return Probe(
        action=default.action,
        initial_delay_s=probe.get("initialDelaySeconds", default.initial_delay_s),
        period_s=probe.get("periodSeconds", default.period_s),
        timeout_s=probe.get("timeoutSeconds", default.timeout_s),
        success_threshold=probe.get("successThreshold", default.success_threshold),
        failure_threshold=probe.get("failureThreshold", default.failure_threshold),
    )


def _action(handler: Mapping[str, Any], ports: Mapping[str, int]) -> Action:
    match handler:
        case {"httpGet": get}:
            return Action(kind="http", path=get.get("path", "/"), port=_port(get["port"], ports))
        case {"tcpSocket": socket}:
            return Action(kind="tcp", port=_port(socket["port"], ports))
        case {"exec": execution}:
            return Action(kind="exec", command=tuple(execution["command"]))
        case {"sleep": sleep}:
            return Action(kind="sleep", sleep_s=sleep["seconds"])
        case _:
            raise _RefusedError(f"a probe or hook of kind {', '.join(handler)}")


def _service(resource: Resource, surroundings: Surroundings, workloads: Sequence[Workload]) -> Service:
    namespace, name = _identity(resource)
    spec = resource.inputs["spec"]
    containers = [container for workload in workloads for container in workload.template.containers]
    named = {port: number for container in containers for port, number in container.ports.items()}
    try:
        ports = {port.get("name", "default"): _port(port.get("targetPort", port["port"]), named) for port in spec["ports"]}
        host_ports = _host_ports(resource, surroundings.port_offset)
        if not host_ports.keys() <= ports.keys() or not all(0 < number < 65_536 for number in host_ports.values()):
            raise _RefusedError(f"`{HOST_PORTS}` gives {host_ports}, must give ports of the Service numbers from 1 to 65535")
    except (_RefusedError, ValueError) as error:
        raise UserError(f"{resource.urn}: {error}", "correct the Service's ports, or --port-offset") from error
    return Service(
        region=surroundings.region,
        namespace=namespace,
        name=name,
        workloads=tuple(workload.key for workload in workloads),
        ports=ports,
        host_ports=host_ports,
        has_unready=bool(spec.get("publishNotReadyAddresses")),
    )


def _host_ports(service: Resource, offset: int) -> dict[str, int]:
    annotation = (service.inputs["metadata"].get("annotations") or {}).get(HOST_PORTS, "")
    pairs = [pair.partition("=") for pair in annotation.split(",") if pair]
    return {port: int(number) + offset for port, _, number in pairs}


def _port(port: str | int | float, ports: Mapping[str, int]) -> int:
    if isinstance(port, str) and not port.isdigit():
        if port not in ports:
            raise _RefusedError(f"port `{port}`, which no container names,")
        return ports[port]
    return int(port)


def _share(field: str, value: Any) -> int:
    if isinstance(value, str):
        raise _RefusedError(f"`{field}` as a share (`{value}`)")
    return int(value)


def _identity(resource: Resource) -> tuple[str, str]:
    metadata = resource.inputs.get("metadata") or {}
    return metadata.get("namespace", "default"), metadata.get("name", resource.name)
